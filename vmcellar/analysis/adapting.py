"""Advice on schedules for the VMs of a configuration, made the schedules of its jobs, and taken back.

The command `vmcellar advise` and the flow `adapt-schedules` both come through here. Advised schedules lie in the state
directory (`policy/timetable.py`); a Prefect server gets them from the one flow that owns all schedules.

A VM whose schedule cannot be changed stays as it is, and its work counts all the same: one that no job with a schedule
has, or several; one that is backed up less than daily, or always in full.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from vmcellar.analysis.advise import BUDGET, Advice, advise
from vmcellar.analysis.cellar_bounds import Bounds, Cellar, kept_by
from vmcellar.analysis.fill import DAY
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.judging import Host, Need, Starts
from vmcellar.analysis.loads import current_starts, loads_of
from vmcellar.catalog.models import ScheduleChange
from vmcellar.config.units import minutes_of_day
from vmcellar.policy import timetable
from vmcellar.policy.governing import promised
from vmcellar.policy.localzone import local_zone
from vmcellar.policy.timetable import Advised

if TYPE_CHECKING:
    import pandas as pd

    from vmcellar.analysis.advise import Change
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.config.jobs import BackupJob
    from vmcellar.config.model import Config

OWN = "the job's own"
UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class Applied:
    """The VMs whose schedules changed; `left_out` are those that had no single job whose schedule could change."""

    changed: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wishes:
    """How many backups this host runs at once; `budget` and `even` as `advise` has them; `rpo` in seconds is that of
    VMs whose job names none.
    """

    concurrent: int
    budget: float = BUDGET
    even: bool = True
    rpo: float | None = None


def advice_for(
    frame: pd.DataFrame,
    now: float | None,
    jobs: Sequence[BackupJob],
    wishes: Wishes,
    own: Mapping[str, int] | None = None,
    cellar: Cellar | None = None,
    standing: Sequence[Advised] = (),
) -> Advice:
    """Advice by the good rows of a history at `now` (seconds since the epoch; None: its last start).

    `own` is what `own_runs` gives, `standing` what was advised before and holds. Without jobs every VM is free, without
    a `cellar` tiers allow everything and cost nothing. An empty history gives no advice.
    """
    outlook = forecast_change(frame, now, local_zone())
    seen = current_starts(frame, outlook.now)
    current = seen | {vm: starts for vm, starts in standing_starts(standing, jobs, outlook.now).items() if vm in seen}
    known = _days_known(frame, outlook.now)
    needs = []
    for vm, starts in sorted(current.items()):
        need = need_of(vm, jobs, wishes.rpo, outlook.now)
        kept = kept_by(_first_job(vm, jobs), len(starts), known[vm])
        needs.append(replace(need, kept=kept, own=(own or {}).get(vm)))
    bounds = Bounds() if cellar is None else cellar.bounds(frame, needs, outlook.now)
    hosts = [Host(concurrent=wishes.concurrent, writes=bounds.writes)]
    loads = loads_of(frame, outlook)
    made = advise(needs, hosts, loads, current, wishes.budget, even=wishes.even, stores=bounds.stores)
    return replace(made, unknown=bounds.unknown)


def _days_known(frame: pd.DataFrame, now: float) -> dict[str, float]:
    """For how many days there is history of each VM."""
    first = frame.groupby("vm", observed=True, sort=False)["started"].min()
    return {str(vm): max(now - moment.timestamp(), 0.0) / DAY for vm, moment in first.items()}


def _first_job(vm: str, jobs: Sequence[BackupJob]) -> BackupJob | None:
    """The job whose policy a VM has: the one with a schedule that selects it, else the first that does."""
    return job_of(vm, jobs) or next((one for one in jobs if one.selects(vm)), None)


def need_of(vm: str, jobs: Sequence[BackupJob], rpo: float | None, now: float) -> Need:
    """What policy asks for a VM at `now`: a job's window is local time, the need's is UTC by today's offset."""
    job = job_of(vm, jobs)
    first = _first_job(vm, jobs)
    window = None
    if first is not None and first.window is not None:
        ahead = _ahead(now, local_zone())
        window = ((first.window.start - ahead) % 1440, (first.window.end - ahead) % 1440)
    promise = rpo_of(vm, jobs)
    asked = rpo if promise is None else promise
    fixed = bool(jobs) and (job is None or job.mode == "full")
    breach = None if first is None else first.breach_cost
    return Need(vm, rpo=asked, window=window, fixed=fixed, breach_cost=breach)


def standing_starts(standing: Sequence[Advised], jobs: Sequence[BackupJob], now: float) -> dict[str, Starts]:
    """When VMs start by what was advised for them and holds, in minutes of a UTC day at `now`: a day with a pause is
    not to be seen in a history, where runs are late or missing. Left out is who has another schedule than cron lines of
    every day, by somebody's own hand.
    """
    found: dict[str, set[int]] = {}
    odd = set()
    for job in jobs:
        for entry in timetable.holding(job, standing):
            cron, name = entry.schedule.cron, entry.schedule.timezone
            ahead = _ahead(now, ZoneInfo(name) if name else local_zone())
            for vm in entry.vms:
                if cron is None or cron.split()[2:] != ["*", "*", "*"]:
                    odd.add(vm)
                elif job_of(vm, jobs) is job:
                    found.setdefault(vm, set()).update((start - ahead) % 1440 for start in minutes_of_day(cron))
    return {vm: tuple(sorted(starts)) for vm, starts in found.items() if vm not in odd}


def rpo_of(vm: str, jobs: Sequence[BackupJob]) -> float | None:
    """The shortest RPO in seconds that any job promises of a VM, as `slo` and the watch hold it to, also one without a
    schedule; of a job that selects it by tags only where that is the first.
    """
    first = _first_job(vm, jobs)
    asked = [float(rpo) for rpo in (promised(jobs, vm).rpo, first.rpo if first else None) if rpo]
    return min(asked, default=None)


def own_runs(changes: Iterable[ScheduleChange]) -> dict[str, int]:
    """The runs a day that VMs had before the advice that holds for them, by the audit trail, oldest change first."""
    found: dict[str, int] = {}
    for change in changes:
        if change.after == OWN:
            found.pop(change.vm, None)
        elif change.before == OWN and change.predicted is not None:
            found[change.vm] = int(change.predicted["runs"])
    return found


def job_of(vm: str, jobs: Iterable[BackupJob]) -> BackupJob | None:
    """The one job with a schedule that selects a VM by name; None when there is none, or several (whose turn would it
    be?), or one's tags decide.
    """
    scheduled = [job for job in jobs if job.schedule is not None and job.selects_by_name(vm) is not False]
    return scheduled[0] if len(scheduled) == 1 and scheduled[0].selects_by_name(vm) else None


def advised_of(
    advice: Advice, jobs: Sequence[BackupJob], standing: Sequence[Advised], now: datetime, zone: tzinfo
) -> tuple[list[Advised], list[str]]:
    """What is to hold from `now` on, and the VMs that cannot be changed.

    VMs that begin at the same times share a schedule. One that stays as it is keeps what was advised before; one that
    has no history any more loses it. In a window schedules are local time, as the window is: in UTC they would lie
    outside of it once the clocks change.
    """
    together: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    kept: dict[Advised, list[str]] = {}
    left_out = []
    ahead, key = _ahead(now.timestamp(), zone), getattr(zone, "key", "")
    for change in advice.changes:
        job = job_of(change.vm, jobs)
        if job is None:
            left_out.append(change.vm)
        elif change.before != change.after:
            local = job.window is not None and bool(key)
            starts = tuple(sorted((start + ahead) % 1440 for start in change.after)) if local else change.after
            together.setdefault((job.name, key if local else "UTC", tuple(starts)), []).append(change.vm)
        else:
            for entry in standing:
                if entry.job == job.name and change.vm in entry.vms:
                    kept.setdefault(entry, []).append(change.vm)
    found = [entry for entry in standing if not entry.vms]
    found += [entry.model_copy(update={"vms": tuple(sorted(vms))}) for entry, vms in kept.items()]
    when = now.isoformat(timespec="seconds")
    found += [
        Advised(job=job, vms=tuple(sorted(vms)), schedule=schedule, why="vmcellar advise", time=when)
        for (job, name, starts), vms in sorted(together.items())
        for schedule in timetable.daily(starts, name)
    ]
    return found, left_out


def apply(config: Config, catalog: Catalog, advice: Advice, by: str) -> Applied:
    """Make the advice the schedules of this host's jobs, and note in the catalog what was changed, why, and which gain
    is expected. Nothing is written when nothing changes, or when no VM has a history that tells anything: it is lost,
    or a clock is wrong. The server is told by `reconcile_schedules`.
    """
    if not advice.changes:
        return Applied((), ())
    now = datetime.now(UTC)
    before = timetable.read_advised(config.state)
    after, left_out = advised_of(advice, config.backups, before, now, local_zone())
    was, will = _words(before), _words(after)
    changed = tuple(vm for vm in sorted(was.keys() | will.keys()) if was.get(vm) != will.get(vm))
    if changed:
        timetable.apply_advised(config.state, after)
        _trail(catalog, before, after, by, {one.vm: one for one in advice.changes}, config)
    return Applied(changed, tuple(left_out))


def undo(config: Config, catalog: Catalog, by: str) -> tuple[str, ...]:
    """Bring back what was there before the last `apply`; the VMs that changed. PermanentError when nothing was."""
    before = timetable.read_advised(config.state)
    after = timetable.undo_advised(config.state)
    return _trail(catalog, before, after, by, {}, config)


def _trail(
    catalog: Catalog,
    before: Sequence[Advised],
    after: Sequence[Advised],
    by: str,
    changes: dict[str, Change],
    config: Config,
) -> tuple[str, ...]:
    """A row per VM whose schedule changed."""
    was, will = _words(before), _words(after)
    now = datetime.now(UTC).timestamp()
    rows = [
        ScheduleChange(
            id=uuid.uuid4().hex,
            repository=catalog.repository,
            vm=vm,
            time=now,
            before=was.get(vm, OWN),
            after=will.get(vm, OWN),
            reason=changes[vm].why if vm in changes else UNDONE if not changes else "it has no history any more",
            by=by,
            applied=True,
            predicted=_predicted(changes[vm], config) if vm in changes else None,
        )
        for vm in sorted(was.keys() | will.keys())
        if was.get(vm) != will.get(vm)
    ]
    catalog.add(rows)
    return tuple(row.vm for row in rows)


def _predicted(change: Change, config: Config) -> dict[str, object]:
    """What `gains` compares with what came: figures per day, before and after; `runs` a day before."""
    return {
        "rpo": rpo_of(change.vm, config.backups),
        "runs": len(change.before),
        "was": asdict(change.was),
        "will": asdict(change.will),
    }


def _words(advised: Sequence[Advised]) -> dict[str, str]:
    words: dict[str, list[str]] = {}
    for each in advised:
        for vm in each.vms:
            words.setdefault(vm, []).append(str(each.schedule))
    return {vm: "; ".join(sorted(lines)) for vm, lines in words.items()}


def _ahead(moment: float, zone: tzinfo) -> int:
    """Minutes that local time is ahead of UTC at a moment."""
    offset = datetime.fromtimestamp(moment, zone).utcoffset()
    return round(offset.total_seconds() / 60) if offset else 0
