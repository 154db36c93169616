"""What tasks of one process share beside the engine: cancel tokens, progress and what came of it, by VM or point.

It lies in a module of its own because `flow.serve` pickles flows by value: a lock or an event in a flow's module
would break that. Nothing here outlives the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vmcellar.backup.model import PointSummary
from vmcellar.engine import Engine, open_engine
from vmcellar.progress import CancelToken, ProgressSink


@dataclass(slots=True)
class Activity:
    """One flow run in this process: its cancel token, and how far each stage is, in bytes. Any thread.

    `total` is not known until the instant is held. In the end it has a `point`, or the `failure` that its work ended
    with; Prefect's part of the run is not over then.
    """

    cancel: CancelToken = field(default_factory=CancelToken)
    total: int | None = None
    started: float = field(default_factory=time.monotonic)
    point: PointSummary | None = None
    failure: BaseException | None = None
    _done: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, total: int) -> None:
        """From now on the time counts; `total` bytes are to be read."""
        self.total, self.started = total, time.monotonic()

    def progress(self, stage: str, count: int) -> None:
        """The engine's progress sink."""
        with self._lock:
            self._done[stage] = self._done.get(stage, 0) + count
        for watcher in _watchers:
            watcher(stage, count)

    @property
    def reads(self) -> bool:
        """Whether the VM's disks are not all read yet."""
        return self.total is None or self.done("export") < self.total

    def done(self, stage: str) -> int:
        """Bytes of `stage` so far."""
        with self._lock:
            return self._done.get(stage, 0)


@dataclass(slots=True, eq=False)
class Witness:
    """Somebody who wants to know what becomes of each activity; one is never taken for another."""

    ended: dict[str, Activity] = field(default_factory=dict)


_activities: dict[tuple[str, str], Activity] = {}
_watchers: list[ProgressSink] = []
_witnesses: list[Witness] = []


@contextmanager
def watched(sink: ProgressSink) -> Iterator[None]:
    """Report the progress of all runs of this process to `sink` as well: the command line's bars."""
    _watchers.append(sink)
    try:
        yield
    finally:
        _watchers.remove(sink)


@contextmanager
def witnessed() -> Iterator[dict[str, Activity]]:
    """The activities that end while the block runs, by name: what became of them whatever Prefect says of it."""
    witness = Witness()
    _witnesses.append(witness)
    try:
        yield witness.ended
    finally:
        _witnesses.remove(witness)


def working() -> bool:
    """Whether a flow run of this process works on something now."""
    return bool(_activities)


@contextmanager
def activity(config: str, name: str) -> Iterator[Activity]:
    """The activity of the one flow run of this process that works on `name`, while it is in the block."""
    made = _activities[config, name] = Activity()
    try:
        yield made
    except BaseException as error:
        made.failure = error
        raise
    finally:
        for witness in _witnesses:
            witness.ended[name] = made
        _activities.pop((config, name), None)


def stop_reading(config: str, name: str) -> bool:
    """Ask the flow run that works on `name` to stop, unless it has read all; whether it was asked."""
    found = _activities.get((config, name))
    if found is None or not found.reads:
        return False
    found.cancel.cancel()
    return True


def controls(config: str, name: str) -> tuple[ProgressSink, CancelToken]:
    """Progress sink and cancel token of a flow run; fresh ones for a task that runs outside of a flow of ours."""
    found = _activities.get((config, name)) or Activity()
    return found.progress, found.cancel


def engine_of(config: str) -> Engine:
    """The engine for the configuration file `config`, or for the usual one when it is empty."""
    return open_engine(Path(config) if config else None)
