"""Adapted against fixed schedules, by replay of weeks that the advice has not seen.

The fixed schedule is what a careful administrator writes: per class of RPO one cron line that starts all its VMs on the
hour, at half of the RPO or the next usual interval below; VMs with a window start when it opens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import stdtr

from bench.analysis_losers import holm
from vmcellar.analysis.advise import Advice, advise
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.judging import Host, Need, Starts, spread_runs
from vmcellar.analysis.loads import loads_of
from vmcellar.analysis.replay import Truth, replay
from vmcellar.analysis.sample import Sample, Settings, generate

DAY = 86400.0
HOUR = 3600.0
CRON_HOURS = (1, 2, 3, 4, 6, 8, 12, 24)
WINDOW = (22 * 60, 6 * 60)
RPO_HOURS = (4, 8, 12, 24, 26)
FIGURES = ["breaches", "breach_hours", "overruns"]
LUCK = 1000
"""Draws of luck are so far apart, those of estates by one."""


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


@dataclass(frozen=True, slots=True)
class Compared:
    """`table`: a row per class of RPO and for all, fixed beside adapted, of four weeks of all estates (the mean over
    the draws of luck). `apart`: a row per class and figure, how much more an adapted VM has, and `chance`, how likely
    so much more is where nothing is worse; `worse` after Holm's rule.
    """

    table: pd.DataFrame
    apart: pd.DataFrame


def compare(
    settings: Settings, estates: int, budget: float, days: int = 28, *, even: bool = True, lucks: int = 1
) -> Compared:
    """Replay both schedules of so many estates, each with several draws of luck."""
    rows = []
    peaks = {"fixed": 0, "adapted": 0}
    for number in range(estates):
        sample = generate(replace(settings, seed=settings.seed + 500 + number))
        cut = settings.days - days
        case = case_of(sample, cut, days)
        advice = advice_for(sample, case, cut, budget, even=even)
        adapted = {**case.fixed, **{one.vm: one.after for one in advice.changes}}
        for luck in range(lucks):
            for name, schedules in (("fixed", case.fixed), ("adapted", adapted)):
                done = replay(case.needs, case.hosts, case.truths, schedules, days, seed=number + LUCK * luck)
                peaks[name] = max(peaks[name], *done.peaks.values())
                rows += [
                    {"estate": number, "vm": need.vm, "class": f"{(need.rpo or 0) / HOUR:.0f} h", "which": name}
                    | asdict(done.by_vm[need.vm])
                    for need in case.needs
                ]
    all_rows = pd.DataFrame(rows)
    both = pd.concat([all_rows, all_rows.assign(**{"class": "all"})])
    table = both.groupby(["class", "which"], sort=False).sum(numeric_only=True).drop(columns="estate") / lucks
    table.loc[[("all", "fixed"), ("all", "adapted")], "peak"] = [peaks["fixed"], peaks["adapted"]]
    return Compared(table, apart(all_rows))


def apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether a class is served worse by more than noise: a one-sided t-test of the differences between adapted and
    fixed, VM by VM (each with its luck, the same for both; the mean over its draws).
    """
    found = []
    for name, members in rows.groupby("class", sort=False):
        means = members.groupby(["estate", "vm", "which"])[FIGURES].mean().unstack("which")
        for figure in FIGURES:
            more = (means[figure, "adapted"] - means[figure, "fixed"]).to_numpy()
            error = max(float(more.std(ddof=1)) / len(more) ** 0.5, 1e-12)
            found.append((name, figure, more.mean(), float(stdtr(len(more) - 1, -more.mean() / error))))
    table = pd.DataFrame(found, columns=["class", "figure", "more", "chance"])
    return table.assign(worse=holm(table["chance"].to_numpy()))
