"""Adapted against fixed schedules, by replay of weeks that the advice has not seen.

The fixed schedule is what a careful administrator writes: per class of RPO one cron line that starts all its VMs on the
hour, at half of the RPO or the next usual interval below; VMs with a window start when it opens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from vmcellar.analysis.advise import Advice, advise
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.judging import Host, Need, Starts, spread_runs
from vmcellar.analysis.loads import loads_of
from vmcellar.analysis.replay import Outcome, Truth, replay
from vmcellar.analysis.sample import Sample, Settings, generate

DAY = 86400.0
HOUR = 3600.0
CRON_HOURS = (1, 2, 3, 4, 6, 8, 12, 24)
WINDOW = (22 * 60, 6 * 60)
RPO_HOURS = (4, 8, 12, 24, 26)


@dataclass(frozen=True, slots=True)
class Case:
    """One estate: what policy asks, where, what was, and what really came."""

    needs: tuple[Need, ...]
    hosts: tuple[Host, ...]
    fixed: dict[str, Starts]
    truths: dict[str, Truth]


def case_of(sample: Sample, cut: int, days: int, hosts: int = 4, concurrent: int = 2) -> Case:
    """VMs of a sample that live through the replay, spread over hosts and RPO classes; those of 26 h in a window."""
    needs, fixed, truths = [], {}, {}
    for number, (vm, rows) in enumerate(sample.truth.groupby("vm", sort=True)):
        told = rows.iloc[0].to_dict()
        if told["to_hour"] < (cut + days) * 24 or told["from_hour"] > (cut - 30) * 24:
            continue
        hours = RPO_HOURS[number % len(RPO_HOURS)]
        window = WINDOW if hours == 26 else None
        need = Need(str(vm), f"kvm{number % hosts + 1}", hours * HOUR, window)
        needs.append(need)
        fixed[need.vm] = fixed_starts(need)
        hourly = sample.hourly[rows.index.to_numpy()].sum(axis=0)[cut * 24 : (cut + days) * 24]
        curve = np.concatenate(([0.0], np.cumsum(hourly)))
        truths[need.vm] = Truth(need.vm, curve, 6.0, told["speed"], 0.12, told["failures"], 0.35)
    names = tuple(Host(f"kvm{one + 1}", concurrent) for one in range(hosts))
    return Case(tuple(needs), names, fixed, truths)


def fixed_starts(need: Need) -> Starts:
    """On the hour, at half of the RPO at most; once, as its window opens, for a VM with one."""
    assert need.rpo is not None
    if need.window is not None:
        return (need.window[0],)
    every = max(hours for hours in CRON_HOURS if hours <= need.rpo / HOUR / 2)
    return spread_runs(24 // every, replace(need, window=None))


def advice_for(sample: Sample, case: Case, cut: int, budget: float, *, even: bool = True) -> Advice:
    """What would have been advised on the day of the cut."""
    now = sample.start.timestamp() + cut * DAY
    frame = sample.frame[sample.frame["started"] <= pd.Timestamp(now, unit="s", tz="UTC")]
    return advise(case.needs, case.hosts, loads_of(frame, forecast_change(frame, now)), case.fixed, budget, even=even)


def compare(settings: Settings, seeds: int, budget: float, days: int = 28, *, even: bool = True) -> pd.DataFrame:
    """A row per RPO class and for all, fixed beside adapted, summed over seeds."""
    sums: dict[tuple[str, str], Outcome] = {}
    peaks: dict[str, int] = {"fixed": 0, "adapted": 0}
    for number in range(seeds):
        sample = generate(replace(settings, seed=settings.seed + 500 + number))
        cut = settings.days - days
        case = case_of(sample, cut, days)
        advice = advice_for(sample, case, cut, budget, even=even)
        adapted = {**case.fixed, **{one.vm: one.after for one in advice.changes}}
        for name, schedules in (("fixed", case.fixed), ("adapted", adapted)):
            done = replay(case.needs, case.hosts, case.truths, schedules, days, seed=number)
            peaks[name] = max(peaks[name], *done.peaks.values())
            for need in case.needs:
                for group in (f"{(need.rpo or 0) / HOUR:.0f} h", "all"):
                    sums[group, name] = sums.get((group, name), Outcome()) + done.by_vm[need.vm]
    table = pd.DataFrame({key: asdict(one) for key, one in sums.items()}).T
    table.loc[[("all", "fixed"), ("all", "adapted")], "peak"] = [peaks["fixed"], peaks["adapted"]]
    return table
