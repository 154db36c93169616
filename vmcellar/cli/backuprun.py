"""One call that backs VMs up: through the Prefect flow, or with the engine's own threads where Prefect is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmcellar.backup.model import BackupRequest, PointSummary
from vmcellar.backup.selection import job_requests
from vmcellar.cli.bars import progress_bars
from vmcellar.cli.output import note, print_error
from vmcellar.config import load_config
from vmcellar.errors import CancelledError, VmcellarError
from vmcellar.progress import CancelToken


@dataclass(slots=True)
class Outcome:
    """What became of each VM: a committed point, or an error."""

    points: list[PointSummary] = field(default_factory=list)
    failures: list[VmcellarError] = field(default_factory=list)

    def raise_first_failure(self) -> None:
        """Raise the first error after the others were printed."""
        if self.failures:
            for error in self.failures[1:]:
                print_error(error)
            raise self.failures[0]


def run_backups(path: Path, names: Sequence[str], job: str | None, *, full: bool, cancel: CancelToken) -> Outcome:
    """Back up the VMs that are named, or that the job selects. One VM's failure does not stop the others."""
    requests = job_requests(load_config(path), names, job or "", full=full)
    return _with_threads(path, requests, cancel)


def _with_threads(path: Path, requests: Sequence[BackupRequest], cancel: CancelToken) -> Outcome:
    from vmcellar.backup import pipeline
    from vmcellar.engine import open_engine

    engine = open_engine(path)
    outcome = Outcome()
    for request in requests:
        try:
            with progress_bars() as progress:
                outcome.points.append(pipeline.run(engine, request, progress, cancel))
        except CancelledError:
            raise
        except VmcellarError as error:
            outcome.failures.append(error)
    return outcome


def prefect_is_here() -> bool:
    """Whether flows can run; says what is missed when not."""
    if importlib.util.find_spec("prefect") is not None:
        return True
    note("note: Prefect is not installed: backing up without a run record or UI (pip install prefect)")
    return False
