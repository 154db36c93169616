"""The one owner of all schedules: `reconcile_schedules`."""

from __future__ import annotations

from prefect import flow

from flows.parameters import Schedules
from tasks import timetable
from tasks.artifacts import schedules_artifact
from tasks.control import engine_of
from tasks.runrecords import recorded
from vmcellar.policy.timetable import read_advised


@flow(name="reconcile-schedules", flow_run_name="reconcile schedules of {request.where}")
@recorded
async def reconcile_schedules(request: Schedules) -> list[str]:
    """Bring the server's schedules in line with the configuration and what was advised; what was changed."""
    config = engine_of(request.config).config
    todo = await timetable.changes(timetable.timetable(config, read_advised(config.state), request.where))
    await timetable.apply(todo)
    lines = [f"{change.what} {change.slug} of {change.deployment}: {change.schedule or 'gone'}" for change in todo]
    await schedules_artifact(lines)
    return lines
