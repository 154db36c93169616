"""How full a tier will be: what is added by day, the trend of that, and the date at which a capacity is reached.

What incremental runs add is the sum of what each disk will add (`growth.py`); what full runs add comes in lumps, so
its mean over the last 13 weeks is carried on. Intervals come from a rolling backtest of each disk (`misses.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.growth import Added, trend_of
from vmcellar.analysis.intervals import LEVELS
from vmcellar.analysis.misses import Miss, misses_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DAY = 86400.0
LEAST_DAYS = 28
HORIZON = 366
DAMPING = 0.95
"""What slopes keep of themselves from week to week."""
BEGINNING = 7
"""Days from a tier's first run on in which a disk's first full is where the history begins, and no newcomer."""


@dataclass(frozen=True, slots=True)
class Fill:
    """A tier's use from `now` on: `used[d]` bytes after d days, `low` and `high` by level (80, 95); `per_day` is what
    is added on the mean day of the next 30. `refusal` says why there is no forecast; arrays are empty then.
    """

    tier: str
    now: float
    used: Floats
    low: dict[int, Floats]
    high: dict[int, Floats]
    per_day: float
    refusal: str = ""

    def days_to(self, capacity: float) -> float | None:
        """Days until `capacity` bytes are used; None when that is over a year away, or there is no forecast."""
        return _crossing(self.used, capacity)

    def days_between(self, capacity: float, level: int) -> tuple[float | None, float | None]:
        """The earliest and the latest day, at a level of 80 or 95 %."""
        return _crossing(self.high[level], capacity), _crossing(self.low[level], capacity)


def _crossing(used: Floats, capacity: float) -> float | None:
    over = np.flatnonzero(used >= capacity)
    if not len(over):
        return None
    day = int(over[0])
    if day == 0:
        return 0.0
    return float(day - 1 + (capacity - used[day - 1]) / (used[day] - used[day - 1]))


def added_by_day(frame: pd.DataFrame, tier: str, now: float) -> Added:
    """What runs stored in each day up to `now`, which ends each day."""
    started = seconds_of(frame["started"])
    rows = np.flatnonzero(frame["ok"].to_numpy() & (frame["tier"].to_numpy() == tier) & (started <= now))
    if not len(rows):
        return Added(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0), now)
    started = started[rows]
    back = np.floor((now - started) / DAY).astype(np.int64)
    length = int(back.max())
    stored = frame["bytes_stored"].to_numpy()[rows].astype(np.float64)
    full = (frame["kind"].to_numpy() == "full")[rows]
    inside = (back < length) & ~_beginnings(frame, rows, started, full)
    disk, count = _disks(frame, rows)
    place = disk * length + length - 1 - back
    chosen = inside & ~full
    incremental, runs = (
        np.bincount(place[chosen], weights, count * length).reshape(count, length).astype(np.float64)
        for weights in (stored[chosen], None)
    )
    chosen = inside & full
    whole = np.bincount(length - 1 - back[chosen], stored[chosen], length).astype(np.float64)
    return Added(incremental, runs, whole, now - length * DAY)


def _disks(frame: pd.DataFrame, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """A number from 0 on for each row's disk, and how many disks there are."""
    (vm, _), (name, names) = (pd.factorize(frame[column].iloc[rows]) for column in ("vm", "disk"))
    codes, disks = pd.factorize(vm.astype(np.int64) * len(names) + name)
    return codes.astype(np.int64), len(disks)


def _beginnings(
    frame: pd.DataFrame, rows: NDArray[np.int64], started: Floats, full: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the rows are first fulls of the days in which the history began: nothing of the kind comes again."""
    disks = frame.groupby(["vm", "disk"], observed=True, sort=False)["started"].transform("min")
    first = seconds_of(disks)[rows] >= started
    return np.asarray(full & first & (started < started.min() + BEGINNING * DAY), dtype=np.bool_)


def fill_of(
    frame: pd.DataFrame, tier: str, used: float, now: float | None = None, kept_days: int | None = None
) -> Fill:
    """The coming year of a tier of which `used` bytes are used at `now` (seconds since the epoch; else the last start).

    `kept_days`: what was stored is taken to go again after so many days (retention by time); None: nothing goes.
    """
    moment = float(seconds_of(frame["started"]).max()) if now is None else now
    added = added_by_day(frame, tier, moment)
    if added.days < LEAST_DAYS:
        reason = f"{added.days} days of history on {tier}; {LEAST_DAYS} are needed"
        return Fill(
            tier, moment, np.zeros(0), {x: np.zeros(0) for x in LEVELS}, {x: np.zeros(0) for x in LEVELS}, 0.0, reason
        )
    misses = misses_of(added, DAMPING, LEAST_DAYS)
    coming = np.cumsum(trend_of(added).ahead(HORIZON, DAMPING))
    gone = np.zeros(HORIZON) if kept_days is None else _gone(added.total, coming, kept_days)
    low, high = {}, {}
    for level in LEVELS:
        below, above = _bounds(misses, level)
        low[level] = _from(used, coming * below - gone)
        high[level] = _from(used, coming * above - gone)
    return Fill(tier, moment, _from(used, coming - gone), low, high, float(coming[29] / 30))


def _from(used: float, change: Floats) -> Floats:
    return np.maximum(np.concatenate(([used], used + change)), 0.0)


def _gone(past: Floats, added: Floats, kept_days: int) -> Floats:
    """What has gone by the end of each day: that of `kept_days` before, in the past or, later, of what is added."""
    daily = np.concatenate((past, np.diff(added, prepend=0.0)))
    first = len(past) - kept_days
    days = np.arange(first, first + HORIZON)
    return np.asarray(np.cumsum(np.where(days >= 0, daily[np.maximum(days, 0)], 0.0)), dtype=np.float64)


def _bounds(misses: list[Miss], level: int) -> tuple[Floats, Floats]:
    """Factors for each of the coming days, by Student's t: straight between those of which the error is known, on as
    the root of time after the last; nothing to twice as much where none is.
    """
    if not misses:
        return np.zeros(HORIZON), np.full(HORIZON, 2.0)
    days = np.array([one.days for one in misses])
    ends = [float(stdtrit(one.freedom, 0.5 + level / 200)) * one.error for one in misses]
    ahead = np.arange(1, HORIZON + 1)
    reach = np.interp(ahead, days, ends) * np.sqrt(np.maximum(ahead / days[-1], 1.0))
    return np.exp(-reach), np.exp(reach)
