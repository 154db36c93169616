"""One call that backs VMs up: through the Prefect flow, or with the engine's own threads where Prefect is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest
from vmcellar.backup.selection import OffVm, select, standing_of
from vmcellar.cli.bars import progress_bars
from vmcellar.cli.flowrun import FlowEnd, prefect_answers, run_flow
from vmcellar.cli.outcome import Outcome
from vmcellar.cli.output import note
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.config import load_config
from vmcellar.engine import Engine, open_engine
from vmcellar.errors import CancelledError, VmcellarError


def run_backups(
    path: Path,
    names: Sequence[str],
    job: str = "",
    *,
    full: bool = False,
    start_paused: bool = False,
    keep_paths: bool = False,
    verbose: bool = False,
) -> Outcome:
    """Back up the VMs that are named, or that the job selects. One VM's failure does not stop the others.

    With `keep_paths` no path of a guest is left out.

    What is wrong with the request, the key or the repository is said at once, before Prefect is started.
    """
    selection = select(load_config(path), names, job, full=full, start_paused=start_paused, keep_paths=keep_paths)
    engine = open_engine(path)
    standing = standing_of(engine.repository, job, selection.off)
    for vm, found in standing.items():
        if isinstance(found, OffVm):
            note(f"note: {vm}: {found}")
    outcome, rest = Outcome(), selection.requests
    if prefect_answers():
        end = run_flow(path, names, job, full=full, start_paused=start_paused, keep_paths=keep_paths, verbose=verbose)
        outcome.points += end.points.values()
        if not end.lost:
            outcome.failures += [end.failure] if end.failure else []
            return outcome
        outcome.failures += end.failures.values()
        rest = tuple(request for request in rest if request.vm not in {*end.points, *end.failures})
        _say_what_is_lost(end, [request.vm for request in rest])
    _with_threads(engine, rest, outcome)
    outcome.failures += [found for found in standing.values() if isinstance(found, VmcellarError)]
    return outcome


def _say_what_is_lost(end: FlowEnd, rest: Sequence[str]) -> None:
    note(f"note: Prefect was lost: {' '.join(end.lost.split())}")
    if end.points:
        done = ", ".join(f"{vm} ({point.id})" for vm, point in end.points.items())
        note(f"note: written and verified all the same, though Prefect may not have heard of it: {done}")
    if rest:
        note(f"note: backed up without a run record: {', '.join(rest)}")


def _with_threads(engine: Engine, requests: Sequence[BackupRequest], outcome: Outcome) -> None:
    with cancel_on_signals() as cancel:
        for request in requests:
            try:
                with progress_bars() as progress:
                    outcome.points.append(pipeline.run(engine, request, progress, cancel))
            except CancelledError:
                raise
            except VmcellarError as error:
                outcome.failures.append(error)
