"""Restoring, checking and settling as tasks: one engine call each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from tasks.control import controls, engine_of
from tasks.retrying import RETRIED
from vmcellar.backup import stages
from vmcellar.backup.model import RecoverAction
from vmcellar.repository import left_out, scrub
from vmcellar.repository.scrub_sample import Sample
from vmcellar.restore.bring_back import Done, Wanted, run_restore
from vmcellar.restore.targets import ImageFormat


@task(name="restore", task_run_name="restore {point}", **RETRIED)
def restore(config: str, point: str, wanted: Wanted) -> Done:
    """Restore a point into a folder, and define the VM where asked for. Never overwrites anything."""
    engine = engine_of(config)
    progress, cancel = controls(config, point)
    found = engine.repository.point(point)
    if words := left_out.warning(found):
        get_run_logger().warning("point %s: %s", found.id, words)
    return run_restore(engine.repository, found, wanted, engine.config.libvirt.uri, progress, cancel)


@task(name="verify-point", task_run_name="verify {point}", **RETRIED)
def verify_point(config: str, point: str, deep: bool) -> scrub.ScrubReport:
    """Check one point."""
    repository = engine_of(config).repository
    progress, cancel = controls(config, point)
    return scrub.verify_point(repository, repository.point(point), deep=deep, progress=progress, cancel=cancel)


@task(name="verify-all", **RETRIED)
def verify_all(config: str, deep: bool, share: float = 1.0) -> scrub.ScrubReport:
    """Check every point; with a share below 1, deep, only that share of the packs is read: those least lately."""
    progress, cancel = controls(config, "")
    repository = engine_of(config).repository
    if not deep or share >= 1:
        return scrub.verify_all(repository, deep=deep, progress=progress, cancel=cancel)
    sample = Sample.of(repository, share)
    report = scrub.verify_all(repository, deep=True, choose=sample.packs, progress=progress, cancel=cancel)
    sample.done()
    return report


@task(name="recover", **RETRIED)
def recover(config: str, vm: str, resume: bool) -> list[dict[str, Any]]:
    """Settle what dead runs and drills of this host left."""
    from vmcellar.restore import drill_journal  # noqa: PLC0415  (needs libvirt)

    engine = engine_of(config)
    actions = stages.recover(engine, vm or None, resume=resume)
    left = [] if vm else drill_journal.clear(engine.state)
    actions += [RecoverAction("", name, "abandoned", drill_journal.CLEARED) for name in left]
    return [asdict(action) for action in actions]


def restore_wanted(
    directory: str, image_format: ImageFormat, disks: tuple[str, ...], best_effort: bool, define: str
) -> Wanted:
    """The engine's form of a restore flow's parameters."""
    return Wanted(Path(directory), image_format, disks, best_effort, define or None)
