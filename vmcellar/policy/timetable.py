"""What runs by itself and when: the jobs' schedules, what was advised in their place, and the maintenance.

One owner writes schedules to the Prefect server (`flows.schedules.reconcile_schedules`), from what is here: so a new
deployment never undoes an advised schedule. Advised schedules lie in `<state>/advised.json`; without it the
configuration alone counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import Field, TypeAdapter, ValidationError

from vmcellar.config.jobs import BackupJob
from vmcellar.config.model import Config
from vmcellar.config.schedules import Schedule
from vmcellar.config.section import Section
from vmcellar.config.units import Window, minutes_of_day
from vmcellar.errors import PermanentError
from vmcellar.policy.localzone import local_zone
from vmcellar.policy.windows import seconds_left

ADVISED_FILE = "advised.json"
BEFORE_FILE = "advised-before.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One schedule of one deployment; `slug` names it there, `request` are the parameters of its runs."""

    slug: str
    schedule: Schedule
    request: Mapping[str, Any] = field(default_factory=dict)


class Advised(Section):
    """A schedule that takes the place of a job's own, for some of its VMs or (empty) for all."""

    job: str = Field(min_length=1)
    vms: tuple[str, ...] = ()
    schedule: Schedule
    why: str = ""
    time: str = Field(default="", description="when it was advised, RFC 3339")


_ADVISED = TypeAdapter(tuple[Advised, ...])


def read_advised(state: Path, name: str = ADVISED_FILE) -> tuple[Advised, ...]:
    """What was advised; none without the file. PermanentError when it cannot be understood."""
    path = state / name
    try:
        return _ADVISED.validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        raise PermanentError(
            f"advised schedules in {path} cannot be understood: {error.errors()[0]['msg']}",
            hint="remove the file: the schedules of the configuration hold then",
        ) from error


def apply_advised(state: Path, advised: Sequence[Advised]) -> None:
    """Put `advised` in the place of what is there, which `undo_advised` brings back; once, as there is one memory."""
    write_advised(state, read_advised(state), BEFORE_FILE)
    write_advised(state, advised)


def undo_advised(state: Path) -> tuple[Advised, ...]:
    """Bring back what was there before the last `apply_advised`; what holds now. PermanentError without one."""
    before = read_advised(state, BEFORE_FILE) if (state / BEFORE_FILE).exists() else None
    if before is None:
        raise PermanentError("no advice was applied that could be undone", hint="`vmcellar advise --apply` applies one")
    write_advised(state, before)
    (state / BEFORE_FILE).unlink()
    return before


def daily(starts: Sequence[int], zone: str = "UTC") -> list[Schedule]:
    """Cron lines that begin at these minutes of the zone's day: one for each minute of the hour among them."""
    hours: dict[int, list[int]] = {}
    for start in sorted(set(starts)):
        hours.setdefault(start % 60, []).append(start // 60)
    return [
        Schedule(cron=f"{minute} {','.join(map(str, each))} * * *", timezone=zone)
        for minute, each in sorted(hours.items())
    ]


def write_advised(state: Path, advised: Sequence[Advised], name: str = ADVISED_FILE) -> None:
    """Replace what was advised, by rename: a crash leaves the old or the new."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, new = state / name, state / f"{name}.new"
    new.write_text(json.dumps([entry.model_dump(mode="json", exclude_none=True) for entry in advised], indent=1))
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)


def job_entries(config: Config, advised: Sequence[Advised]) -> dict[str, list[Entry]]:
    """The schedules of every job, by its name; a job without any has an empty list.

    What was advised for a job that is gone, or that has no schedule of its own, is left out: who takes a job's schedule
    away wants it to run by hand only. So is what was advised before the job's window became another one, for VMs of
    which a start now lies outside: each such run would be skipped.
    """
    entries: dict[str, list[Entry]] = {}
    for job in config.backups:
        entries[job.name] = _entries(job.name, job.schedule, holding(job, advised))
    return entries


def holding(job: BackupJob, advised: Sequence[Advised]) -> list[Advised]:
    """What holds for a job of what was advised."""
    own = [entry for entry in advised if entry.job == job.name] if job.schedule is not None else []
    outside = {vm for entry in own for vm in entry.vms if not _is_inside(entry.schedule, job.window)}
    return [entry for entry in own if outside.isdisjoint(entry.vms)]


def _is_inside(schedule: Schedule, window: Window | None) -> bool:
    """Whether each start of an advised schedule lies in a window, in winter as in summer."""
    if window is None or schedule.cron is None:
        return True
    local = local_zone()
    zone = ZoneInfo(schedule.timezone) if schedule.timezone else local
    days = (datetime(datetime.now(local).year, month, 15, tzinfo=zone) for month in (1, 7))
    starts = [day.replace(hour=at // 60, minute=at % 60) for day in days for at in minutes_of_day(schedule.cron)]
    return all(seconds_left(window, start.astimezone(local)) for start in starts)


def _entries(job: str, schedule: Schedule | None, advised: Sequence[Advised]) -> list[Entry]:
    if schedule is None:
        return []
    request = {"job": job, "scheduled": True}
    some = [entry for entry in advised if entry.vms]
    for_all = [entry for entry in advised if not entry.vms]
    apart = sorted({vm for entry in some for vm in entry.vms})
    rest = {**request, "except_vms": apart} if apart else request
    entries = [Entry("vmcellar", for_all[-1].schedule if for_all else schedule, rest)]
    for number, entry in enumerate(some):
        entries.append(Entry(f"vmcellar-advised-{number}", entry.schedule, {**request, "vms": sorted(entry.vms)}))
    return entries


def maintenance_entries(config: Config, where: str = "here") -> dict[str, list[Entry]]:
    """The schedules of what is done besides backups, by the flow's name; off: an empty list. `where` is the name under
    which this host's flows are deployed.
    """
    what = config.maintenance
    several = config.tiers.warm is not None or config.tiers.cold is not None
    flows: dict[str, tuple[Schedule | None, dict[str, Any]]] = {
        "recover-host": (what.recover, {}),
        "watch-fleet": (what.watch, {}),
        "upkeep-repository": (what.upkeep, {}),
        "rebalance-tiers": (what.rebalance if several else None, {}),
        "verify-restores": (what.prove, {"minutes": what.prove_minutes}),
        "analyse-history": (what.analyse, {}),
        "adapt-schedules": (what.adapt, {"where": where, "action": "apply" if what.adapt_apply else "show"}),
        "verify-repository": (what.verify, {"deep": True, "sample": what.verify_sample}),
    }
    return {
        flow: [] if schedule is None else [Entry("vmcellar", schedule, request)]
        for flow, (schedule, request) in flows.items()
    }
