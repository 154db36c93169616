"""Thawing as tasks: one look at it, and the copies to hot of what can be read."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task

from tasks.control import controls, engine_of
from tasks.retrying import RETRIED
from vmcellar.config.prices import Speed
from vmcellar.repository.leases import BusyError
from vmcellar.restore import as_thawed, thaw_wait
from vmcellar.restore.as_thawed import Waiting
from vmcellar.restore.bring_back import Wanted
from vmcellar.restore.plan import make_plan
from vmcellar.restore.thaw import ThawRecords
from vmcellar.upkeep import pins
from vmcellar.upkeep.bring import Brought, bring

NOWHERE = Path()
"""The folder of a restore that is not asked for."""


@task(name="thaw", task_run_name="thaw {point}", **RETRIED)
def look(config: str, point: str, wanted: Wanted, speed: Speed, days: int) -> thaw_wait.Look:
    """Ask for what is archived of what a restore still needs, and say when to look again. Costs money the first time.

    A `wanted` without a folder is no restore: all of the point is asked for.
    """
    engine = engine_of(config)
    repository = engine.repository
    records = ThawRecords(engine.state, repository)
    _, cancel = controls(config, point)
    found = repository.point(point)
    plan = make_plan(repository, found, wanted.disks, cancel=cancel)
    if wanted.folder != NOWHERE:
        plan = as_thawed.rest_of(repository, found, wanted.folder, plan, cancel) or plan
    return thaw_wait.look(repository, plan, (speed, days), engine.config.price_tables(), records)


@task(name="pin", task_run_name="pin {point} while it waits: {waits}", **RETRIED)
def pin(config: str, point: str, holder: str, waits: bool) -> None:
    """Keep prune from the point while its thaw is waited for by `holder`, or no longer."""
    repository = engine_of(config).repository
    problem = pins.while_it_waits(repository, repository.point(point), holder, waits=waits)
    if problem:
        get_run_logger().warning("%s", problem)


@task(name="write-readable", task_run_name="write what is readable of {point}", **RETRIED)
def write_readable(config: str, point: str, wanted: Wanted) -> Waiting:
    """Write into the restore's folder what can be read by now; what it waits for. Names no image."""
    repository = engine_of(config).repository
    progress, cancel = controls(config, point)
    return as_thawed.write_readable(repository, repository.point(point), wanted.target(), progress, cancel)


@task(name="fetch", task_run_name="fetch {point}", **RETRIED)
def fetch(config: str, point: str, disks: tuple[str, ...]) -> Brought | None:
    """Copy to hot what of the point can be read by now; None while gc or another work of its kind runs."""
    repository = engine_of(config).repository
    progress, cancel = controls(config, point)
    plan = make_plan(repository, repository.point(point), disks, cancel=cancel)
    try:
        return bring(repository, plan.keys, progress=progress, cancel=cancel)
    except BusyError as error:
        get_run_logger().warning("nothing is copied to hot this time: %s", error.message)
        return None
