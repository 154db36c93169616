"""What if: the same history under another retention, interval, rule of placement or bandwidth: what it would hold and
cost, and how long it would be at work.

A model on what was really stored, not a promise:

- A run's bytes lie from its start until its point is dropped, `keep_days` later; those of a full stay. Bytes that a
  dropped point shares with a kept one stay too, in truth, so what is held is a lower bound.
- At a longer interval a run stores what the runs that it stands for stored: an upper bound, as what was overwritten in
  between is stored once. At a shorter one it is a lower bound.
- Bytes move to the next tier when they have lain for its days, and are paid for by its price table.
- With a limit of bytes a second a run takes at least what it read by that, else what it took: what a faster line than
  it had would save, no history holds. At a longer interval a run takes as long as those that it stands for together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vmcellar.analysis.grid import seconds_of
from vmcellar.policy.costs import Bill, Stay, bill

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmcellar.config.prices import Prices

DAY = 86400.0
MONTH_DAYS = 30


@dataclass(frozen=True, slots=True)
class Scenario:
    """A way to keep and to take backups. `tiers` are names with the age in days from which on bytes lie there; the
    first is 0. `every` takes one backup where `every` are taken now. `rate` is the most bytes a second that a run may
    read, as `bandwidth:` of a job is; None: as it was.
    """

    name: str
    keep_days: float
    tiers: tuple[tuple[str, float], ...] = (("hot", 0.0),)
    every: float = 1.0
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario comes to in the last 30 days of the history: bytes by tier at its end, the bill of these days,
    bytes stored in them, runs in them, and the usual time between two points of a VM in seconds (the median).

    `busy` is the seconds that all runs of these days take together, `longest` that of the longest one, `late` how many
    of them would still be at work when their VM's next one is due.
    """

    scenario: Scenario
    held: Mapping[str, int]
    bill: Bill
    stored: int
    runs: int
    interval: float
    busy: float
    longest: float
    late: int

    @property
    def total(self) -> int:
        """Bytes on all tiers."""
        return sum(self.held.values())


@dataclass(frozen=True, slots=True)
class Past:
    """A good history as scenarios need it, made once for all of them: what each VM stored on a day (`since`, `size`;
    `goes` is whether retention drops it), the runs of the last 30 days, the gaps between runs in seconds. `end` is now.
    """

    days: pd.DataFrame
    runs: pd.DataFrame
    gaps: pd.Series
    stored: int
    end: float

    @property
    def usual(self) -> float:
        """The usual gap in seconds; NaN without any."""
        return float(self.gaps.median()) if len(self.gaps) else float("nan")


def joined(parts: Sequence[Past]) -> Past:
    """One of several, which are of other VMs each and of one end. At least one."""
    days = pd.concat([part.days for part in parts], ignore_index=True)
    runs = pd.concat([part.runs for part in parts], ignore_index=True)
    gaps = pd.concat([part.gaps for part in parts], ignore_index=True)
    return Past(days, runs, gaps, sum(part.stored for part in parts), parts[0].end)


def past_of(frame: pd.DataFrame, now: pd.Timestamp, older: pd.DataFrame | None = None) -> Past:
    """`older` is what lies before the history, as `history.held_before` gives it."""
    good, end = frame[frame["ok"]], now.timestamp()
    start = end - MONTH_DAYS * DAY
    sizes = pd.DataFrame(
        {
            "vm": good["vm"].astype("object"),
            "day": good["started"].dt.floor("D"),
            "goes": good["kind"] != "full",
            "size": good["bytes_stored"].astype("float64"),
        }
    )
    days = sizes.groupby(["vm", "day", "goes"], sort=False)["size"].sum().reset_index()
    days = days if older is None else pd.concat([older[list(days.columns)], days], ignore_index=True)
    runs = _runs(good)
    recent = good.loc[seconds_of(good["started"]) >= start, "bytes_stored"]
    month = runs[seconds_of(runs["started"]) >= start]
    reads = good[good["run_id"].isin(month["run_id"])].groupby("run_id", sort=False)["bytes_read"].sum()
    month = month.assign(read=month["run_id"].map(reads).astype("float64"))
    return Past(days.assign(since=seconds_of(days["day"])), month, runs["gap"].dropna(), int(recent.sum()), end)


def outcome(past: Past, scenario: Scenario, prices: Mapping[str, Prices]) -> Outcome:
    """What a scenario comes to. KeyError for a tier without prices."""
    stays = _stays(past.days, scenario)
    held = {name: 0 for name, _ in scenario.tiers}
    for stay in stays:
        if stay.since <= past.end and (stay.until is None or stay.until > past.end):
            held[stay.tier] += stay.size
    took, stands = past.runs["took"], np.where(past.runs["kind"] == "incremental", scenario.every, 1.0)
    if scenario.rate is not None:
        took = took.where(took > past.runs["read"] / scenario.rate, past.runs["read"] / scenario.rate)
    return Outcome(
        scenario,
        held,
        _bill(past, stays, prices),
        past.stored,
        round(len(past.runs) / scenario.every),
        past.usual * scenario.every,
        float(took.sum()),
        float((took * stands).max()) if len(took) else 0.0,
        round(float((took > past.runs["gap"]).sum()) / scenario.every),
    )


def bill_of(past: Past, scenario: Scenario, prices: Mapping[str, Prices]) -> Bill:
    """The bill of the last 30 days alone. KeyError for a tier without prices."""
    return _bill(past, _stays(past.days, scenario), prices)


def _bill(past: Past, stays: Sequence[Stay], prices: Mapping[str, Prices]) -> Bill:
    return bill(prices, [stay for stay in stays if stay.since <= past.end], past.end - MONTH_DAYS * DAY, past.end)


def compare(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row per outcome: `scenario, held, cost, stored, runs, interval_hours, busy_hours, longest_minutes, late`, and
    the bytes held on each tier.
    """
    return pd.DataFrame(
        [
            {
                "scenario": one.scenario.name,
                "held": one.total,
                "cost": round(one.bill.total, 2),
                "stored": one.stored,
                "runs": one.runs,
                "interval_hours": round(one.interval / 3600, 2),
                "busy_hours": round(one.busy / 3600, 2),
                "longest_minutes": round(one.longest / 60, 1),
                "late": one.late,
                **{f"on {tier}": size for tier, size in one.held.items()},
            }
            for one in outcomes
        ]
    )


def _stays(days: pd.DataFrame, scenario: Scenario) -> list[Stay]:
    """What lies where from when to when, a VM's bytes of one day as one object."""
    ends = np.where(days["goes"], days["since"] + scenario.keep_days * DAY, np.inf)
    return [
        stay
        for total, begin, until in zip(days["size"].to_numpy(), days["since"].to_numpy(), ends, strict=True)
        for stay in _one(int(total), float(begin), float(until), scenario)
    ]


def _one(size: int, since: float, ends: float, scenario: Scenario) -> list[Stay]:
    edges = [since + days * DAY for _, days in scenario.tiers] + [np.inf]
    parts = zip(scenario.tiers, edges[:-1], edges[1:], strict=True)
    return [
        Stay(tier, size, begin, None if np.isinf(min(until, ends)) else min(until, ends))
        for (tier, _), begin, until in parts
        if begin < ends and size > 0
    ]


def _runs(good: pd.DataFrame) -> pd.DataFrame:
    """A row per run, by VM and time: `run_id, vm, started, kind`, how long it `took` and the `gap` to the next one."""
    runs = good.drop_duplicates("run_id")[["run_id", "vm", "started", "kind", "seconds"]]
    runs = runs.sort_values(["vm", "started"], kind="stable")
    gap = runs.groupby("vm", observed=True)["started"].diff(-1).dt.total_seconds().abs()
    return runs.assign(gap=gap, took=runs["seconds"].fillna(0.0))
