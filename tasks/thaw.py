"""Thawing as tasks: one look at it, and the copies to hot of what can be read."""

from __future__ import annotations

from prefect import get_run_logger, task

from tasks.control import controls, engine_of
from tasks.retrying import RETRIED
from vmcellar.config.prices import Speed
from vmcellar.repository.leases import BusyError
from vmcellar.restore import thaw_wait
from vmcellar.restore.plan import make_plan
from vmcellar.restore.thaw import ThawRecords
from vmcellar.upkeep.bring import Brought, bring


@task(name="thaw", task_run_name="thaw {point}", **RETRIED)
def look(config: str, point: str, disks: tuple[str, ...], speed: Speed, days: int) -> thaw_wait.Look:
    """Ask for what is archived, and say when to look again. Costs money the first time."""
    engine = engine_of(config)
    repository = engine.repository
    records = ThawRecords(engine.state, repository)
    _, cancel = controls(config, point)
    return thaw_wait.look(
        repository, repository.point(point), disks, (speed, days), engine.config.price_tables(), records, cancel
    )


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
