"""A whole backup with plain threads: what the Prefect flow composes from tasks, for programs that want no
Prefect.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmcellar.backup import stages
from vmcellar.backup.at_work import at_work
from vmcellar.backup.cataloguing import noting_failure
from vmcellar.backup.export import raise_first
from vmcellar.backup.model import BackupRequest, PointSummary, RunHandle, SegmentHandle
from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken, ProgressSink, no_progress

if TYPE_CHECKING:
    from vmcellar.engine import Engine

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
    with noting_failure(engine, request), at_work(engine, request):
        handle = stages.snapshot(engine, request, cancel)
        try:
            _work(engine, handle, progress, cancel)
            return stages.commit(engine, handle.run_id)
        except BaseException as error:
            stages.give_up(engine, handle.run_id, error)
            raise


def _work(engine: Engine, handle: RunHandle, progress: ProgressSink, cancel: CancelToken) -> None:
    stop = CancelToken(cancel)
    with ThreadPoolExecutor(AFTER_EXPORT_WORKERS, thread_name_prefix="after-export") as pool:
        futures: list[Future[None]] = []
        try:
            for segment in handle.segments:
                stages.export(engine, handle.run_id, segment.target, segment.number, progress, stop)
                futures.append(pool.submit(_after_export, engine, handle.run_id, segment, progress, stop))
            stages.release(engine, handle.run_id)
        except CancelledError:
            stages.let_go(engine, handle.run_id)  # now: what is being compressed takes its time to stop
            raise_first(futures)  # the segment that failed stopped the export: its error is the one to tell
            raise
        except BaseException:
            stop.cancel()
            stages.let_go(engine, handle.run_id)
            raise
        raise_first(futures)


def _after_export(
    engine: Engine, run_id: str, segment: SegmentHandle, progress: ProgressSink, stop: CancelToken
) -> None:
    """Compress, place and verify one segment; a failure stops all other work on the run, also an export that waits."""
    try:
        for stage in (stages.compress, stages.place, stages.verify):
            stop.check()
            stage(engine, run_id, segment.target, segment.number, progress, stop)
    except BaseException:
        stop.cancel()
        raise
