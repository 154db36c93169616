"""One call that backs VMs up: through the Prefect flow, or with the engine's own threads where Prefect is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmcellar.backup.model import BackupRequest, Mode, PointSummary
from vmcellar.cli.bars import progress_bars
from vmcellar.cli.output import note, print_error
from vmcellar.cli.selection import vms_to_back_up
from vmcellar.config import Config, load_config
from vmcellar.errors import CancelledError, PermanentError, VmcellarError
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
    config = load_config(path)
    requests = [_request(config, vm, job, full) for vm in vms_to_back_up(config, names, job)]
    return _with_threads(path, requests, cancel)


def _request(config: Config, vm: str, job: str | None, full: bool) -> BackupRequest:
    if job is None:
        return BackupRequest(vm, "full" if full else "auto")
    entry = config.job(job)
    if (entry.storage.kind, entry.storage.place) != ("tier", "hot"):
        raise PermanentError(
            f"job {job}: storage {entry.storage.kind} {entry.storage.place}: this version stores on the tier hot only",
            hint="set `storage: hot`, or leave the key out; nothing was backed up",
        )
    mode: Mode = "full" if full or entry.mode == "full" else "auto"
    return BackupRequest(vm, mode, job, exclude_disks=entry.excluded_disks(vm), compression=entry.compression)


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
