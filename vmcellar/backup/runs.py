"""One run as the stages see it: its directory, what was captured, what is to be read, and who lands which chunk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vmcellar.backup.claims import Claims
from vmcellar.backup.export import PLACE_DIRECT
from vmcellar.backup.model import BackupRequest, ExportResult, Kind, RunHandle, SegmentHandle
from vmcellar.backup.planning import Segment
from vmcellar.backup.rundir import RUN_FILE, RunDirectory, stage_file
from vmcellar.backup.scratch import PRESSURE_SECONDS, refuse_full
from vmcellar.errors import PermanentError
from vmcellar.progress import CancelToken
from vmcellar.sources.base import Capture, CaptureResult

RELEASED = "released.json"
PLAN = "plan.npz"
ARTIFACTS = "artifacts.npz"
PLAN_ROW = np.dtype([("segment", "<u4"), ("offset", "<u8"), ("length", "<u8"), ("zero", "?")])

WAIT_SECONDS = 0.2
"""How often a wait for a connection looks at the cancel token."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What `run.json` holds: written when the instant is held and planned, before the first byte is read."""

    request: BackupRequest
    capture: CaptureResult
    kind: Kind
    reason: str
    parent: str | None
    disk_reasons: dict[str, str]
    segments: tuple[SegmentHandle, ...]
    warnings: tuple[str, ...]

    @property
    def started(self) -> float:
        """When the instant was taken, seconds since the epoch."""
        return self.capture.began


class Run:
    """A run of this process. Its methods may be called from any thread."""

    def __init__(self, directory: RunDirectory, record: RunRecord, capture: Capture | None) -> None:
        self.directory = directory
        self.record = record
        self.claims = Claims()
        self._capture = capture
        self._plan: dict[str, np.ndarray] = {}
        self._looked = 0.0
        self._lock = threading.Lock()
        self._connections: dict[str, threading.BoundedSemaphore] = {}
        self._adopt_claims()

    @property
    def capture(self) -> Capture:
        """The held instant; PermanentError when it is gone."""
        if self._capture is None:
            raise PermanentError(
                f"{self.record.request.vm}: the instant of run {self.directory.run_id} is gone",
                hint="run the backup again; what had landed is not used",
            )
        return self._capture

    @property
    def held(self) -> bool:
        """Whether this process holds the instant."""
        return self._capture is not None

    def handle(self, *, resumed: bool) -> RunHandle:
        """The small value that stages and tasks pass on."""
        record = self.record
        return RunHandle(
            self.directory.run_id,
            record.request.vm,
            record.kind,
            record.capture.checkpoint,
            resumed,
            record.segments,
            record.warnings,
        )

    def segment(self, target: str, number: int) -> Segment:
        """The planned extents of one segment."""
        with self._lock:
            if not self._plan:
                self._plan = self.directory.load_arrays(PLAN)
        rows = self._plan[target]
        mine = rows[rows["segment"] == number]
        pairs = [(int(r["offset"]), int(r["length"]), bool(r["zero"])) for r in mine]
        return Segment(
            number, tuple((o, n) for o, n, zero in pairs if not zero), tuple((o, n) for o, n, zero in pairs if zero)
        )

    @contextmanager
    def connection(self, target: str, most: int, cancel: CancelToken) -> Iterator[None]:
        """Hold one of the `most` connections that a disk has, over all its segments; CancelledError while waiting.

        So the next segment is read as soon as the one before has no more to read, while its last packs are written.
        """
        with self._lock:
            free = self._connections.setdefault(target, threading.BoundedSemaphore(most))
        while not free.acquire(timeout=WAIT_SECONDS):
            cancel.check()
        try:
            yield
        finally:
            free.release()

    def check_pressure(self) -> None:
        """Give up for the guest's sake when scratch space is nearly full; cheap, looks four times a second.

        Never of a run that holds no VM, as one that had landed when its process died.
        """
        if not self.held:
            return
        now = time.monotonic()
        with self._lock:
            if now - self._looked < PRESSURE_SECONDS:
                return
            self._looked = now
        refuse_full(self.capture)

    def all_exported(self) -> bool:
        """Whether every segment has landed, so that the VM is needed no more."""
        return all(self.directory.has(stage_file(s.target, s.number, "export")) for s in self.record.segments)

    def _adopt_claims(self) -> None:
        for segment in self.record.segments:
            name = stage_file(segment.target, segment.number, "export")
            if self.directory.load(name, ExportResult) is None:
                continue
            rows = self.directory.load_arrays(stage_file(segment.target, segment.number, "export", "npz"))["rows"]
            stored = rows[(rows["place"] >= 0) | (rows["place"] == PLACE_DIRECT)]["chunk"]
            self.claims.adopt((chunk.tobytes() for chunk in stored), (segment.target, segment.number))


def plan_rows(segments: Iterable[Segment]) -> np.ndarray:
    """The plan of one disk as PLAN_ROW rows."""
    rows = [
        (segment.number, offset, length, zero)
        for segment in segments
        for zero, pairs in ((False, segment.read), (True, segment.zero))
        for offset, length in pairs
    ]
    return np.array(rows, PLAN_ROW)


def load_record(directory: RunDirectory) -> RunRecord | None:
    """The record of a run that got as far as being planned, else None."""
    return directory.load(RUN_FILE, RunRecord)
