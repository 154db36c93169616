"""The gain that really came of an applied schedule, beside what was predicted.

Compared are the days since the change with as many before it, at most four weeks of each, in which no other change of
the VM's schedule lies. With few days or runs the answer is that it is too early to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vmcellar.analysis.adapting import UNDONE
from vmcellar.analysis.objectives import exposure

if TYPE_CHECKING:
    from vmcellar.catalog.models import ScheduleChange

DAY = 86400.0
LEAST_DAYS = 7.0
LEAST_RUNS = 10
MOST_DAYS = 28.0
WORK_OFF = 0.2
"""Work that is off by less than this share counts as predicted."""


@dataclass(frozen=True, slots=True)
class Came:
    """What was, in some days: breaches of the RPO (None without one), hours over it and seconds of work a day."""

    days: float
    runs: int
    breaches: int | None
    late_hours: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Gain:
    """One VM's last change (`time` in seconds since the epoch). `expected` and `expected_before` are breaches that were
    predicted for the days of `after`, `work` seconds a day; `verdict` says in words how that compares.
    """

    vm: str
    time: float
    before: Came
    after: Came
    expected_before: float
    expected: float
    work_before: float
    work: float
    verdict: str
    early: bool


def gains(changes: Sequence[ScheduleChange], frame: pd.DataFrame, now: float) -> list[Gain]:
    """The gain of each VM's newest change that still holds; `frame` are the good rows of the history."""
    by_vm: dict[str, list[ScheduleChange]] = {}
    for change in sorted((one for one in changes if one.applied), key=lambda one: one.time):
        by_vm.setdefault(change.vm, []).append(change)
    found = []
    for vm, own in sorted(by_vm.items()):
        newest = own[-1]
        if newest.predicted is None or newest.reason == UNDONE:
            continue
        since = own[-2].time if len(own) > 1 else 0.0
        found.append(_gain(newest, newest.predicted, since, frame[frame["vm"] == vm], now))
    return found


def _gain(
    change: ScheduleChange, predicted: dict[str, dict[str, float]], since: float, rows: pd.DataFrame, now: float
) -> Gain:
    days = min((now - change.time) / DAY, MOST_DAYS)
    rpo = predicted.get("rpo")
    limit = float(rpo) if isinstance(rpo, int | float) else None
    first = rows["started"].min().timestamp() if len(rows) else change.time
    begin = max(change.time - days * DAY, since, first)
    before = came(rows, begin, change.time, limit)
    after = came(rows, change.time, change.time + days * DAY, limit)
    was, will = predicted["was"], predicted["will"]
    verdict, early = _verdict(after, will, limit)
    expected = (was["breaches"] * after.days, will["breaches"] * after.days)
    return Gain(change.vm, change.time, before, after, *expected, was["seconds"], will["seconds"], verdict, early)


def came(rows: pd.DataFrame, begin: float, end: float, rpo: float | None) -> Came:
    """What the runs of one VM came to between two moments (seconds since the epoch)."""
    days = max(end - begin, 0.0) / DAY
    first, last = (pd.Timestamp(moment, unit="s", tz="UTC") for moment in (begin, end))
    runs = rows[(rows["started"] >= first) & (rows["started"] < last)].drop_duplicates("run_id")
    seconds = float(runs["seconds"].fillna(0).sum()) / days if days else 0.0
    if rpo is None:
        return Came(days, len(runs), None, 0.0, seconds)
    teeth = exposure(rows, last)  # of all runs, so that a gap which goes on beyond the end is not taken for over
    within = teeth[(teeth["until"] > first) & (teeth["until"] <= last)]
    over = np.maximum(within["worst"].to_numpy() - rpo, 0.0)
    return Came(days, len(runs), int((over > 0).sum()), float(over.sum()) / 3600 / days if days else 0.0, seconds)


def _verdict(after: Came, will: dict[str, float], rpo: float | None) -> tuple[str, bool]:
    """How what came compares with what was predicted, and whether it is too early to say."""
    if after.days < LEAST_DAYS or after.runs < LEAST_RUNS:
        return f"too early: {after.runs} of {LEAST_RUNS} runs in {after.days:.1f} of {LEAST_DAYS:g} days", True
    said = []
    if rpo is not None and after.breaches is not None:
        expected = will["breaches"] * after.days
        noise = 2 * (expected + 1) ** 0.5  # of a count that comes by chance
        if after.breaches > expected + noise:
            said.append("more breaches than predicted: `vmcellar advise --undo` takes it back")
        elif after.breaches < expected - noise:
            said.append("fewer breaches than predicted")
    off = after.seconds / will["seconds"] - 1 if will["seconds"] else 0.0
    if abs(off) > WORK_OFF:
        said.append(f"{abs(off):.0%} {'more' if off > 0 else 'less'} work than predicted")
    return "; ".join(said) or "as predicted", False
