"""How often a stage of a segment failed in its run, whoever tries it again: the retries that the catalog tells of.

A failure is noted in the run directory when it happens, so a stage that succeeds writes nothing for this, and a run
that another process goes on with keeps its count. A process that is killed notes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

from vmcellar.backup.rundir import RunDirectory, stage_file
from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken, ProgressSink

if TYPE_CHECKING:
    from vmcellar.engine import Engine

T = TypeVar("T")
Stage = Callable[["Engine", str, str, int, ProgressSink, CancelToken], T]


@dataclass(frozen=True, slots=True)
class Failures:
    """How often one stage of one segment failed, and what the last error said."""

    times: int
    error: str


def counted(stage: str, work: Stage[T]) -> Stage[T]:
    """The stage, whose failures are noted; a stop is none."""

    @wraps(work)
    def counting(
        engine: Engine, run_id: str, target: str, segment: int, progress: ProgressSink, cancel: CancelToken
    ) -> T:
        try:
            return work(engine, run_id, target, segment, progress, cancel)
        except CancelledError:
            raise
        except Exception as error:
            _note(engine.run_directory(run_id), _name(target, segment, stage), error)
            raise

    return counting


def failures(directory: RunDirectory, target: str, segment: int, stage: str) -> int:
    """How often the stage failed so far; once it succeeded, that is how often it was done again."""
    noted = directory.load(_name(target, segment, stage), Failures)
    return noted.times if noted is not None else 0


def _note(directory: RunDirectory, name: str, error: Exception) -> None:
    """The stage's own error counts, whatever becomes of this."""
    with suppress(OSError):
        before = directory.load(name, Failures)
        directory.save(name, Failures(1 + (before.times if before else 0), str(error)))


def _name(target: str, segment: int, stage: str) -> str:
    return stage_file(target, segment, f"{stage}-failures")
