"""How full a tier will be to which no backup writes: what earlier looks found there, carried on.

Packs come to such a tier by moves and copies, and go by gc, in steps that no run tells. What is known is its use at
each look of `analyse-history` (`tier_use`). That is carried on along its mean growth by the week, with the intervals of
a random walk with drift (Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd edition, 5.2 and 5.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from vmcellar.analysis.fill import DAY, HORIZON, LEAST_DAYS, Fill
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.intervals import LEVELS

if TYPE_CHECKING:
    import pandas as pd

WEEK_DAYS = 7
MOST_WEEKS = 26
LEAST_LOOKS = 5


def fill_of_looks(looks: pd.DataFrame, tier: str, used: float, now: float) -> Fill:
    """The coming year of a tier of which `used` bytes are used at `now` (seconds since the epoch).

    `looks` are rows of `history.tier_use`. Between two looks the use is taken to have changed evenly.
    """
    mine = looks[looks["tier"] == tier]
    times = seconds_of(mine["time"])
    before = times < now
    times, uses = np.append(times[before], now), np.append(mine["bytes_used"].to_numpy(dtype=np.float64)[before], used)
    recent = times >= now - MOST_WEEKS * WEEK_DAYS * DAY
    days = (now - times[recent].min()) / DAY
    if days < LEAST_DAYS or recent.sum() < LEAST_LOOKS:
        needed = f"{LEAST_LOOKS - 1} in {LEAST_DAYS} days are needed"
        return _refused(tier, now, f"{int(recent.sum()) - 1} looks in {days:.0f} days; {needed}")
    weeks = int(days // WEEK_DAYS)
    levels = np.interp(now - np.arange(weeks, -1, -1) * WEEK_DAYS * DAY, times, uses)
    steps = np.diff(levels)
    ahead = np.arange(HORIZON + 1) / WEEK_DAYS
    middle = used + steps.mean() * ahead
    spread = steps.std(ddof=1) * np.sqrt(ahead * (1 + ahead / weeks))
    low, high = {}, {}
    for level in LEVELS:
        reach = stdtrit(weeks - 1, 0.5 + level / 200) * spread  # Student's t: few weeks tell little of their spread
        low[level], high[level] = np.maximum(middle - reach, 0.0), middle + reach
    return Fill(tier, now, np.maximum(middle, 0.0), low, high, float(steps.mean()) / WEEK_DAYS)


def _refused(tier: str, now: float, reason: str) -> Fill:
    none = np.zeros(0)
    return Fill(tier, now, none, dict.fromkeys(LEVELS, none), dict.fromkeys(LEVELS, none), 0.0, reason)
