"""The schedules on a Prefect server, brought in line with the timetable of `vmcellar/policy/timetable.py`.

Only schedules whose slug begins with `vmcellar` are ours; what people add in the UI stays. One that was paused there
stays paused. Deployments are made without schedules, so nothing but this writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from prefect import get_client
from prefect.client.schemas.schedules import SCHEDULE_TYPES, CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.exceptions import ObjectNotFound

from vmcellar.errors import PermanentError
from vmcellar.policy.localzone import local_zone
from vmcellar.policy.timetable import Entry, job_entries, maintenance_entries

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

    from vmcellar.config.model import Config
    from vmcellar.config.schedules import Schedule
    from vmcellar.policy.timetable import Advised

SERVED = "here"
"""Where the flows of a host are that runs them by itself (`vmcellar up`); else the name of the host."""

PREFIX = "vmcellar"
_ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
"""Intervals count from here, so that the same interval is always due at the same times."""


@dataclass(frozen=True, slots=True)
class Change:
    """One schedule that is not yet as it should be."""

    deployment: str
    what: Literal["add", "change", "remove"]
    slug: str
    schedule: str
    deployment_id: Any
    schedule_id: Any = None
    entry: Entry | None = None


def job_deployment(job: str, where: str) -> str:
    """The name of a job's deployment of `backup-job`."""
    return job if where == SERVED else f"{job}@{where}"


def timetable(config: Config, advised: Sequence[Advised], where: str) -> dict[str, list[Entry]]:
    """The schedules that each deployment of this configuration has, by `flow/deployment`."""
    jobs = {f"backup-job/{job_deployment(name, where)}": each for name, each in job_entries(config, advised).items()}
    return {**jobs, **{f"{flow}/{where}": each for flow, each in maintenance_entries(config, where).items()}}


async def changes(wanted: dict[str, list[Entry]]) -> list[Change]:
    """What has to be done, nothing done yet. Deployments that are not there are left out."""
    found: list[Change] = []
    async with get_client() as client:
        for name, entries in wanted.items():
            deployment = await _deployment(client, name)
            if deployment is not None:
                found += _compare(name, deployment, entries)
    return found


async def apply(todo: Sequence[Change]) -> None:
    """Do it; each change alone, so that what is cut off in the middle is finished by the next call."""
    async with get_client() as client:
        for change in todo:
            if change.entry is None:
                await client.delete_deployment_schedule(change.deployment_id, change.schedule_id)
            elif change.schedule_id is None:
                await client.create_deployment_schedules(
                    change.deployment_id,
                    [(prefect_schedule(change.entry.schedule), True)],
                    parameters=_parameters(change.entry),
                    slug=change.slug,
                )
            else:
                await client.update_deployment_schedule(
                    change.deployment_id,
                    change.schedule_id,
                    schedule=prefect_schedule(change.entry.schedule),
                    parameters=_parameters(change.entry),
                )


def prefect_schedule(schedule: Schedule) -> SCHEDULE_TYPES:
    """The same as Prefect has it; without a zone, in this host's. PermanentError where that has no name."""
    zone = schedule.timezone or _own_zone()
    if schedule.cron is not None:
        return CronSchedule(cron=schedule.cron, timezone=zone)
    if schedule.interval is not None:
        return IntervalSchedule(interval=timedelta(seconds=schedule.interval), anchor_date=_ANCHOR, timezone=zone)
    return RRuleSchedule(rrule=str(schedule.rrule), timezone=zone)


def _own_zone() -> str:
    zone = local_zone()
    name: str = getattr(zone, "key", "") or ("" if datetime.now(zone).utcoffset() else "UTC")
    if not name:
        raise PermanentError(
            "this host's time zone has no name, so schedules would be in another one than windows",
            hint="`timedatectl set-timezone Europe/Berlin` (or where it is), or `timezone:` with each schedule",
        )
    return name


def _parameters(entry: Entry) -> dict[str, Any]:
    return {"request": dict(entry.request)}


async def _deployment(client: PrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def is_ours(schedule: DeploymentSchedule) -> bool:
    """Whether a schedule on the server is one that this writes."""
    return (schedule.slug or "").startswith(PREFIX)


def _compare(name: str, deployment: DeploymentResponse, entries: Sequence[Entry]) -> list[Change]:
    ours = {each.slug: each for each in deployment.schedules if is_ours(each)}
    todo = []
    for entry in entries:
        there = ours.pop(entry.slug, None)
        if there is None:
            todo.append(Change(name, "add", entry.slug, str(entry.schedule), deployment.id, None, entry))
        elif not _same(there, entry):
            todo.append(Change(name, "change", entry.slug, str(entry.schedule), deployment.id, there.id, entry))
    todo += [Change(name, "remove", str(slug), "", deployment.id, there.id) for slug, there in ours.items()]
    return todo


def _same(there: DeploymentSchedule, entry: Entry) -> bool:
    wanted = prefect_schedule(entry.schedule)
    same = there.schedule.model_dump(mode="json") == wanted.model_dump(mode="json")
    return same and there.parameters == _parameters(entry)
