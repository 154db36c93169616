"""What sets a part of the history apart before models see it: lasting level shifts, and ends of months.

Both are found on logarithms of daily change, each day compared with the same weekday one week before, so that neither
noise within a day nor the week's own shape counts. A burst or an outage of a few days moves no median of seven days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.analysis.models import FLOOR, from_log, quiet_mean, quiet_median

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmcellar.analysis.grid import Grid

    Floats = NDArray[np.float64]

LEAST_SHIFT = np.log(1.7)
SHIFT_NOISE = 6.0
DAY_NOISE = 2.0
ENOUGH_DAYS = 21
BESIDE = 3
"""Weeks before and after a shift whose bytes are compared."""
LEAST_MONTH_END = np.log(1.3)
MONTH_END_NOISE = 3.0


@dataclass(frozen=True, slots=True)
class Regimes:
    """`logs` as models may see them: without what came before a shift, month ends brought down to usual days.

    `shift_days` is how many days ago the last shift was (-1: none), `shift` its size (logarithm), `month_end` what a
    month's last day adds (logarithm).
    """

    logs: Floats
    shift_days: NDArray[np.int64]
    shift: Floats
    month_end: Floats


def separate(grid: Grid, logs: Floats) -> Regimes:
    """Find shifts and month ends of every disk, and take them out of its history.

    With `ENOUGH_DAYS` after a shift only those are kept. With fewer, what came before is kept for its shape and moved
    to the new level.
    """
    ends = month_end_steps(grid, -logs.shape[1], 0)
    month_end = month_end_effect(grid, logs, ends)
    logs = logs - month_end[:, None] * ends
    day = grid.season // 7
    days, sizes = _last_shift(*(quiet_mean(_by_day(each, day), axis=2) for each in (logs, from_log(logs))))
    position = logs.shape[1] - days[:, None] * day
    before = (np.arange(logs.shape[1])[None, :] < position) & (days[:, None] >= 0)
    forget = before & (days[:, None] >= ENOUGH_DAYS)
    logs = np.where(forget, np.nan, np.where(before, logs + sizes[:, None], logs))
    return Regimes(logs, days, sizes, month_end)


def month_end_steps(grid: Grid, first: int, last: int) -> Floats:
    """1 for the steps whose middle lies in the last day of a month (UTC), else 0."""
    days = (grid.middles(first, last) // 86400).astype("datetime64[D]")
    next_month = (days + 1).astype("datetime64[M]") != days.astype("datetime64[M]")
    return np.asarray(next_month, dtype=np.float64)


def _by_day(logs: Floats, day: int) -> Floats:
    count = logs.shape[1] // day
    return logs[:, logs.shape[1] - count * day :].reshape(logs.shape[0], count, day)


def _last_shift(daily: Floats, amounts: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Days since the last lasting shift of each disk (-1: none), and its size; from mean logarithms and bytes by day.

    What moves the logarithms of quiet steps, or of days between bursts, is no shift: what weeks add up to has to have
    moved as well.
    """
    count = daily.shape[1]
    none = np.full(len(daily), -1)
    if count < 21:
        return none, np.zeros(len(daily))
    against = daily[:, 7:] - daily[:, :-7]
    windows = np.lib.stride_tricks.sliding_window_view(against, 7, axis=1)
    moved = quiet_median(windows, axis=2)
    moved[(~np.isnan(windows)).sum(axis=2) < 5] = np.nan
    spread = 1.4826 * quiet_median(np.abs(moved), axis=1, keepdims=True)
    single = 1.4826 * quiet_median(np.abs(against), axis=1, keepdims=True)
    limit = np.maximum(LEAST_SHIFT, np.maximum(SHIFT_NOISE * _or_inf(spread), DAY_NOISE * _or_inf(single)))
    strength = np.where(np.abs(moved) > limit, np.abs(moved), 0.0)
    mean = quiet_mean(windows, axis=2)
    days, sizes = none.copy(), np.zeros(len(daily))
    for row in np.flatnonzero(strength.any(axis=1)):
        while strength[row].any():
            last = int(np.flatnonzero(strength[row])[-1])
            first = max(last - 6, 0)
            best = first + int(np.argmax(np.abs(np.nan_to_num(mean[row, first : last + 1]))))
            if _summed(amounts[row], best + 7) * np.sign(moved[row, best]) > LEAST_SHIFT:
                days[row], sizes[row] = count - (best + 7), moved[row, best]
                break
            strength[row, first : last + 1] = 0.0
    return days, sizes


def _summed(amounts: Floats, day: int) -> float:
    """How much more bytes (logarithm) the weeks from a day on had than those before it, up to `BESIDE` of either."""
    weeks = min((len(amounts) - day) // 7, BESIDE)
    before = quiet_mean(amounts[max(day - 7 * BESIDE, 0) : day], axis=0)
    after = quiet_mean(amounts[day : day + 7 * weeks], axis=0)
    return float(np.log((after + FLOOR) / (before + FLOOR)))


def month_end_effect(grid: Grid, logs: Floats, ends: Floats) -> Floats:
    """What the last day of a month adds to a disk's logarithm; 0 unless it is seen twice and stands out, more often
    than not: of two month ends the median is the mean, and one odd day would pass for both.
    """
    day = grid.season // 7
    daily = quiet_mean(_by_day(logs, day), axis=2)
    last_days = quiet_mean(_by_day(ends, day), axis=2) > 0.5
    near = [_moved(daily, shift) for shift in (-14, -7, 7, 14)]
    apart = daily - quiet_median(np.stack(near), axis=0)
    seen = np.where(last_days, apart, np.nan)
    others = 1.4826 * quiet_median(np.abs(np.where(last_days, np.nan, apart)), axis=1)
    effect = quiet_median(seen, axis=1)
    times = (~np.isnan(seen)).sum(axis=1)
    least = np.maximum(LEAST_MONTH_END, MONTH_END_NOISE * _or_inf(others) / np.sqrt(np.maximum(times, 1)))
    with np.errstate(invalid="ignore"):
        often = (seen > LEAST_MONTH_END).sum(axis=1) > times / 2
        found = (times >= 2) & (effect > least) & often
    return np.where(found, np.nan_to_num(effect), 0.0)


def _moved(daily: Floats, by: int) -> Floats:
    """The values `by` days before (above zero) or after each day."""
    out = np.full_like(daily, np.nan)
    if by > 0:
        out[:, by:] = daily[:, :-by]
    else:
        out[:, :by] = daily[:, -by:]
    return out


def _or_inf(values: Floats) -> Floats:
    return np.asarray(np.where(np.isnan(values), np.inf, values), dtype=np.float64)
