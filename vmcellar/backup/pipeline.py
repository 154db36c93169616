"""A whole backup with plain threads: what the Prefect flow composes from tasks, for programs that want no
Prefect.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmcellar.backup import stages
from vmcellar.backup.at_work import at_work
from vmcellar.backup.cataloguing import load_ahead, noting_failure
from vmcellar.backup.export import raise_first
from vmcellar.backup.hooks import hooked
from vmcellar.backup.model import BackupRequest, PointSummary, RunHandle, SegmentHandle
from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken, ProgressSink, no_progress

if TYPE_CHECKING:
    from vmcellar.engine import Engine

_Stage = Callable[["Engine", str, str, int, ProgressSink, CancelToken], object]

READING = 2
"""Segments that are being read: while one waits for its last packs to be durable, the next has the connections."""

AFTER_EXPORT_WORKERS = 3
"""Segments that are compressed, placed and verified at once; their CPU work shares the engine's one pool."""


def run(
    engine: Engine,
    request: BackupRequest,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> PointSummary:
    """Back up one VM and return the committed point.

    Whatever fails, the backup job is released; see `give_up` for what becomes of the run. Raises what the stages
    raise.
    """
    cancel = cancel or CancelToken()
    with noting_failure(engine, request), at_work(engine, request), hooked(engine, request, cancel) as hooks:
        handle = stages.snapshot(engine, request, cancel)
        try:
            hooks.thawed(engine.run(handle.run_id).check_pressure)
            load_ahead()
            _work(engine, handle, progress, cancel)
            hooks.point = point = stages.commit(engine, handle.run_id)
        except BaseException as error:
            stages.give_up(engine, handle.run_id, error)
            raise
    return hooks.on(point)


def _work(engine: Engine, handle: RunHandle, progress: ProgressSink, cancel: CancelToken) -> None:
    stop = CancelToken(cancel)
    with (
        ThreadPoolExecutor(AFTER_EXPORT_WORKERS, thread_name_prefix="after-export") as packing,
        ThreadPoolExecutor(READING, thread_name_prefix="reading") as reading,
    ):
        segments = _Segments(engine, handle.run_id, progress, stop)
        exports = [reading.submit(segments.export, segment) for segment in handle.segments]
        packs = [packing.submit(segments.pack, *pair) for pair in zip(handle.segments, exports, strict=True)]
        try:
            raise_first(exports)
            stages.release(engine, handle.run_id)
        except CancelledError:
            stages.let_go(engine, handle.run_id)  # now: what is being compressed takes its time to stop
            raise_first(packs)  # the segment that failed stopped the export: its error is the one to tell
            raise
        except BaseException:
            stop.cancel()
            stages.let_go(engine, handle.run_id)
            raise
        raise_first(packs)


class _Segments:
    """The stages of each segment. What fails stops all other work on the run, also an export that waits."""

    def __init__(self, engine: Engine, run_id: str, progress: ProgressSink, stop: CancelToken) -> None:
        self._engine = engine
        self._run_id = run_id
        self._progress = progress
        self._stop = stop

    def export(self, segment: SegmentHandle) -> None:
        """Read one segment."""
        self._do(segment, stages.export)

    def pack(self, segment: SegmentHandle, export: Future[None]) -> None:
        """Compress, place and verify one segment once it has been read."""
        if export.exception() is None:
            self._do(segment, stages.compress, stages.place, stages.verify)

    def _do(self, segment: SegmentHandle, *todo: _Stage) -> None:
        try:
            for stage in todo:
                self._stop.check()
                stage(self._engine, self._run_id, segment.target, segment.number, self._progress, self._stop)
        except BaseException:
            self._stop.cancel()
            raise
