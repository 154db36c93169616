"""What `restore --in-place` does: find the VM, ask, keep its present state, overwrite, tell."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.leftout import tell_left_out
from vmcellar.cli.ontorun import Reach
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import config_path, open_engine
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError, VmcellarError
from vmcellar.policy.governing import governing_job

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.in_place import InPlaceReport, Wishes


def overwrite_vm(ctx: typer.Context, name: str, wishes: Wishes, reach: Reach) -> None:
    """Make the VM of the point `name` what it was then."""
    from vmcellar.restore.in_place import InPlace
    from vmcellar.sources.libvirt_connection import Connection

    if not reach.yes and not sys.stdin.isatty():
        raise UsageError("--in-place overwrites a VM, and nobody can be asked here", hint="give --yes to do it unasked")
    engine = open_engine(ctx, reach.config)
    point = engine.repository.point(name)
    tell_left_out(point)
    job = InPlace(engine.repository, point, Connection(engine.config.libvirt.uri), engine.state, wishes)
    if not reach.yes:
        note(
            f"{point.vm} will be made what it was in point {point.id}: {', '.join(d.name for d in job.disks.values())}"
        )
        if typer.prompt("Type the VM's name to do it", err=True) != point.vm:
            raise UsageError(f"that is not {point.vm}: nothing was written")

    def back_up() -> str:
        from vmcellar.cli.backuprun import run_backups

        governing = governing_job(engine.config.backups, point.vm, point.job)  # it says which disks are left out
        outcome = run_backups(
            config_path(ctx, reach.config), [point.vm], governing.name if governing else "", keep_paths=True
        )
        outcome.raise_first_failure()
        return str(outcome.points[0].id)

    job.prepare(back_up)
    if job.safety is not None:
        _pin(engine.repository, job.safety, f"{point.vm} before it was made what it was in {point.id}")
    with engine.vm_lock(point.vm), cancel_on_signals() as cancel, progress_bars() as progress:
        report = job.run(progress, cancel)
    if reach.as_json:
        print_json(json.loads(json.dumps(asdict(report), default=str)))
    else:
        _print(report)


def _pin(repository: Repository, safety: RestorePoint, why: str) -> None:
    """No retention drops what the VM was before, until somebody says so."""
    from vmcellar.upkeep import pins

    try:
        pins.pin(repository, safety, why)
        note(f"point {safety.id} is pinned; once it is not needed, type: vmcellar pin {safety.id} --remove")
    except VmcellarError as error:
        note(f"note: point {safety.id}, which holds what the VM was before, is not pinned: {error.message}")


def _print(report: InPlaceReport) -> None:
    from vmcellar.cli.render.ontos import onto_text

    console().print(onto_text(report.onto))
    if report.safety:
        console().print(f"  what {report.vm} was before is point {report.safety}")
    for path in report.kept:
        console().print(f"  kept: {path}", soft_wrap=True)
    for what in report.brought_back:
        console().print(f"  {what} came back")
    for target in report.left:
        console().print(f"  disk {target} is not in the point and stays as it is", style="yellow")
    console().print(f"  {report.vm} is off; start it with: virsh start {report.vm}")
