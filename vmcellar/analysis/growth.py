"""What a tier's disks add: weekly sums of each disk, its last lasting step, its growth, and the sum of all to come.

Each disk is looked at by itself, as a sum over disks hides what they do: one that lately stores five times as much
looks like a trend of the tier, and one that grows like noise. A disk's history is cut where a step explains its weeks
better than a line does and stands out of the noise; else it has the slope of its line through logarithms, drawn towards
the mean slope of the tier's disks, the more the larger its own error is beside how far slopes really lie apart: a disk
that grows is noise on a tier where none does, and what noise hides is likely growth on a tier where all grow.
Source: DerSimonian and Laird 1986, "Meta-analysis in clinical trials" (their moment estimator of that spread).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.analysis.models import FLOOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

WEEKS = 13
RECENT = 5
"""Weeks whose mean is a disk's level."""
LEAST_BEFORE, LEAST_AFTER = 3, 2
LEAST_STEP = float(np.log(1.5))
STEP_NOISE, SLOPE_NOISE = 4.0, 3.0
"""How many times its own error a step must be to count at all; or a slope, where there are too few disks to compare."""
ENOUGH_DISKS = 5
WANDER = 1.5
"""The error of a slope by that of a line with independent noise: levels wander."""
STEEPEST = 0.3
"""The largest slope of a logarithm in a week."""
LEAST_NOISE = 0.02
DAY = 86400.0
PLACES = 3
"""A month's end falls on two days or three, as a day's begin is no midnight and daily runs come later."""
LEAST_END_DAYS, MOST_MONTHLY = 5, 10.0
"""Days of two month ends at least."""
QUIETEST = 0.5
"""Usual days near month ends count as this share of a mean day at the least."""
FURTHEST = 400
OFTEN = 3.0
"""Runs a week from which on a week without a run means that the disk has gone; else three such weeks do."""


@dataclass(frozen=True, slots=True)
class Added:
    """Bytes stored by day up to a moment, oldest first: `incremental` by disk, of so many `runs`; `whole` is that of
    full runs, over all disks. The first day begins at `begin` (seconds since the epoch).
    """

    incremental: Floats
    runs: Floats
    whole: Floats
    begin: float

    @property
    def days(self) -> int:
        """How many there are."""
        return len(self.whole)

    @property
    def total(self) -> Floats:
        """Of all disks and all runs, by day."""
        return np.asarray(self.incremental.sum(axis=0) + self.whole, dtype=np.float64)

    def until(self, day: int) -> Added:
        """As it was known at the end of a day."""
        return Added(self.incremental[:, :day], self.runs[:, :day], self.whole[:day], self.begin)

    def month_ends_known(self) -> bool:
        """Whether enough of them are in what a trend looks back on."""
        return int((self.month_ends(max(self.days - 7 * WEEKS, 0), self.days) >= 0).sum()) >= LEAST_END_DAYS

    def between(self, first: int, last: int) -> Floats:
        """What each disk added from one day to before another one; at the end what full runs did."""
        whole = float(self.whole[first:last].sum())
        return np.append(self.incremental[:, first:last].sum(axis=1), whole)

    def month_ends(self, first: int, last: int) -> NDArray[np.int64]:
        """Which of the days `first` to `last` hold what changed on a month's last day (UTC), as it is stored by its
        end, or by daily runs within a day of it: the first of them is 0, others 1 and 2; -1 are usual days.
        """
        begins = self.begin + np.arange(first, last) * DAY
        moments = np.datetime64(int(self.begin), "s").astype("datetime64[M]") + np.arange(-1, (last + 62) // 28 + 2)
        ends = moments.astype("datetime64[s]").astype(np.int64)[:, None]
        away = begins + DAY - (ends - DAY)  # how long the day's end is after the begin of the month's last day
        there = (begins < ends + DAY) & (away > 0)
        return np.asarray(np.where(there, np.ceil(away / DAY) - 1, -1).max(axis=0), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Trend:
    """By disk: bytes a week at `level` on average lately, or `now` at the end of its line, its `slope` (logarithm, a
    week), and `monthly`, what a month's end adds to each of the days that it falls on, as a share of what is usual on
    such a day. Of the whole tier: `shape`, the share of each day of a week, `whole`, bytes a day of full runs, and
    `ends`, which coming days a month's end falls on.
    """

    level: Floats
    now: Floats
    slope: Floats
    monthly: Floats
    shape: Floats
    whole: float
    ends: NDArray[np.int64]

    def ahead(self, days: int, damping: float) -> Floats:
        """Bytes added on each of the next days; slopes keep `damping` of themselves from week to week."""
        weekly = self._weekly(days, damping)
        usual, *more = (
            (sums[:, None] * self.shape[None, :]).reshape(-1)[:days]
            for sums in (weekly.sum(axis=0), *(self.monthly.T @ weekly))
        )
        added = sum((np.where(self.ends[:days] == place, each, 0.0) for place, each in enumerate(more)), usual)
        return np.asarray(added + self.whole, dtype=np.float64)

    def within(self, days: int, damping: float) -> Floats:
        """Bytes that each disk adds in so many days, and at the end those of full runs; as `ahead` tells their sum."""
        weekly = self._weekly(days, damping)
        share = np.tile(self.shape, weekly.shape[1])
        share[days:] = 0.0
        ends = [np.where(self.ends[: len(share)] == place, share, 0.0) for place in range(PLACES)]
        usual, *more = (weekly @ each.reshape(-1, 7).sum(axis=1) for each in (share, *ends))
        return np.append(usual + (self.monthly * np.stack(more, axis=1)).sum(axis=1), self.whole * days)

    def _weekly(self, days: int, damping: float) -> Floats:
        """By disk, of the next weeks up to the one that so many days end in, or the one after."""
        weeks = days // 7 + 1
        steps = np.cumsum(damping ** np.arange(1, weeks + 1)) if damping else np.zeros(weeks)
        begin = self.now if damping else self.level
        return np.asarray(begin[:, None] * np.exp(self.slope[:, None] * steps[None, :]), dtype=np.float64)


def trend_of(added: Added) -> Trend:
    """The trend of what was added; of a week at the least."""
    weeks = min(added.days // 7, WEEKS)
    usual, monthly = _month_ends_apart(added)
    table = usual[:, -weeks * 7 :].reshape(-1, weeks, 7)
    sums = table.sum(axis=2)
    runs, lived = _weeks_lived(added, weeks)
    step, slope = _fit(np.where(lived & (runs > 0), np.log(sums + FLOOR), np.nan))
    back = (weeks - 1.0) - np.arange(weeks)
    used = _last(lived & _settled(lived, step), RECENT)
    count = np.maximum(used.sum(axis=1), 1)
    level, now = (
        np.where(_gone(runs), 0.0, np.where(used, sums * np.exp(rise[:, None] * back), 0.0).sum(axis=1) / count)
        for rise in (np.zeros_like(slope), slope)
    )
    shape, whole = _shape(table.sum(axis=0)), float(added.whole[-7 * WEEKS :].mean())
    return Trend(level, now, slope, monthly, shape, whole, added.month_ends(added.days, added.days + FURTHEST))


def stepped(added: Added) -> NDArray[np.int64]:
    """By disk: the day from which its last lasting step shows, of those in the time that a trend of `WEEKS` ago looked
    back on; 0 without one.
    """
    usual, _ = _month_ends_apart(added)
    last = np.zeros(len(usual), dtype=np.int64)
    for weeks in {min(added.days // 7, most) for most in (WEEKS, 2 * WEEKS)}:
        runs, lived = _weeks_lived(added, weeks)
        sums = usual[:, -weeks * 7 :].reshape(-1, weeks, 7).sum(axis=2)
        step, _ = _fit(np.where(lived & (runs > 0), np.log(sums + FLOOR), np.nan))
        last = np.where(step > 0, np.maximum(added.days - 7 * (weeks - step), last), last)
    return last


def gone(added: Added) -> tuple[Bools, float]:
    """Which disks have gone; and how many of those that there were went a week, in the last `WEEKS`."""
    runs, _ = _weeks_lived(added, min(added.days // 7, WEEKS))
    which = _gone(runs)
    return which, float((which & runs.any(axis=1)).sum() / max((runs > 0).sum(), 1))


def _weeks_lived(added: Added, weeks: int) -> tuple[Floats, Bools]:
    """Runs by disk in the last weeks, and which of these it lived."""
    runs = added.runs[:, -weeks * 7 :].reshape(-1, weeks, 7).sum(axis=2)
    return runs, _lived(runs, np.asarray(added.runs[:, : added.days - weeks * 7].any(axis=1), dtype=np.bool_))


def _month_ends_apart(added: Added) -> tuple[Floats, Floats]:
    """Bytes by disk and day with month ends as the same weekday a week before and after; and what a month's end adds
    by disk to each of the days that it falls on, as a share of what is usual on such a day: taken over all of them, a
    month that ends on a Friday would count for what the Saturday adds. The calendar is one for all disks: left in,
    month ends would pass for growth of all.
    """
    places = added.month_ends(0, added.days)
    marked = places >= 0
    days = np.flatnonzero(marked)
    near = days[:, None] + np.array([-7, 7])
    there = (near >= 0) & (near < added.days)
    there &= ~marked[np.where(there, near, 0)]
    days, near, there = (each[there.any(axis=1)] for each in (days, near, there))
    beside = np.where(there, added.incremental[:, np.where(there, near, 0)], 0.0).sum(axis=2) / there.sum(axis=1)
    usual = added.incremental.copy()
    usual[:, days] = beside
    recent = slice(-7 * WEEKS, None)
    if not added.month_ends_known():
        return usual, np.zeros((len(usual), PLACES))
    at = (places[recent, None] == np.arange(PLACES)).astype(np.float64)
    came, without = (each[:, recent] @ at for each in (added.incremental, usual))
    least = QUIETEST * at.sum(axis=0) * usual[:, recent].mean(axis=1, keepdims=True)
    monthly = (came - without) / np.maximum(np.maximum(without, least), 1.0)
    return usual, np.clip(monthly, -1.0, MOST_MONTHLY)


def _shape(table: Floats) -> Floats:
    """Share of a week's bytes by day, from (weeks, 7)."""
    shape = np.median(table / np.maximum(table.sum(axis=1), 1.0)[:, None], axis=0)
    total = float(shape.sum())
    return np.asarray(shape / total if total > 0 else np.full(7, 1 / 7), dtype=np.float64)


def _lived(runs: Floats, before: Bools) -> Bools:
    """Whole weeks of each disk's life; the one in which it began only while there is no other."""
    seen = np.cumsum(runs, axis=1) > 0
    whole = np.where(before[:, None], True, np.cumsum(runs, axis=1) - runs > 0)
    return np.asarray(np.where(whole.any(axis=1, keepdims=True), whole, seen), dtype=np.bool_)


def _gone(runs: Floats) -> Bools:
    usual = np.where(runs > 0, runs, np.nan)
    known = np.maximum((runs > 0).sum(axis=1), 1)
    often = np.nansum(usual, axis=1) / known >= OFTEN
    return np.asarray((often & (runs[:, -1] == 0)) | (runs[:, -3:].sum(axis=1) == 0), dtype=np.bool_)


def _settled(lived: Bools, step: NDArray[np.int64]) -> Bools:
    """The weeks after each disk's step; without the first of them, in which it lies, where two others follow."""
    place = np.arange(lived.shape[1])[None, :]
    after = place >= step[:, None]
    clear = place > step[:, None]
    enough = (step > 0) & ((lived & clear).sum(axis=1) >= LEAST_AFTER)
    return np.asarray(np.where(enough[:, None], clear, after), dtype=np.bool_)


def _last(which: Bools, most: int) -> Bools:
    """The last ones of each row."""
    return np.asarray(which & (np.cumsum(which[:, ::-1], axis=1)[:, ::-1] <= most), dtype=np.bool_)


def _fit(logs: Floats) -> tuple[NDArray[np.int64], Floats]:
    """By disk: the week in which its last step shows (0: none), and its slope (0 with a step)."""
    count, weeks = logs.shape
    if weeks < LEAST_BEFORE + LEAST_AFTER:
        return np.zeros(count, dtype=np.int64), np.zeros(count)
    known, filled = ~np.isnan(logs), np.nan_to_num(logs)
    total = np.maximum(known.sum(axis=1), 1).astype(np.float64)
    place = np.arange(weeks, dtype=np.float64)
    middle = np.where(known, place, 0.0).sum(axis=1) / total
    mean = filled.sum(axis=1) / total
    along = np.where(known, place - middle[:, None], 0.0)
    apart = np.where(known, logs - mean[:, None], 0.0)
    spread = np.maximum((along**2).sum(axis=1), 1e-9)
    slope = (along * apart).sum(axis=1) / spread
    missed = ((apart - slope[:, None] * along) ** 2).sum(axis=1)
    noise = _noise(logs)
    step, better = _step(apart, known, missed, noise)
    error = np.maximum(np.sqrt(missed / np.maximum(total - 2, 1)), noise) / np.sqrt(spread)
    lines = ~better & (known.sum(axis=1) >= LEAST_BEFORE + LEAST_AFTER)
    slope = np.clip(slope, -STEEPEST, STEEPEST)
    return np.where(better, step, 0), np.where(lines, _drawn(slope, error, lines), 0.0)


def _drawn(slope: Floats, error: Floats, lines: Bools) -> Floats:
    """Slopes drawn towards the mean of those that are `lines`; towards none where these are few."""
    if lines.sum() < ENOUGH_DISKS:
        return stands_out(slope, SLOPE_NOISE * error)
    own = (WANDER * error) ** 2
    weight = np.where(lines, 1 / own, 0.0)
    total = weight.sum()
    excess = (weight * (slope - (weight * slope).sum() / total) ** 2).sum() - (lines.sum() - 1)
    apart = max(float(excess / (total - (weight**2).sum() / total)), 1e-8)
    weight = np.where(lines, 1 / (own + apart), 0.0)
    mean = stands_out((weight * slope).sum() / weight.sum(), weight.sum() ** -0.5)
    return np.asarray(mean + apart / (apart + own) * (slope - mean), dtype=np.float64)


def stands_out(value: Floats, error: Floats) -> Floats:
    """What of a value is left where its error is taken off (positive-part James-Stein)."""
    return np.asarray(value * np.maximum(1 - (error / np.maximum(np.abs(value), 1e-12)) ** 2, 0.0), dtype=np.float64)


def _noise(logs: Floats) -> Floats:
    """How much a week differs from the one before, but for a step or a slope."""
    moved = np.abs(np.diff(logs, axis=1))
    order = np.sort(moved, axis=1)
    known = (~np.isnan(moved)).sum(axis=1)
    middle = order[np.arange(len(order)), np.maximum(known - 1, 0) // 2]
    return np.maximum(np.where(known > 0, 1.4826 / np.sqrt(2) * np.nan_to_num(middle), 1.0), LEAST_NOISE)


def _step(apart: Floats, known: Bools, missed: Floats, noise: Floats) -> tuple[NDArray[np.int64], Bools]:
    """The week from which on a step explains most, and whether it does so better than a line and than chance."""
    before = np.cumsum(known, axis=1)[:, :-1].astype(np.float64)
    after = known.sum(axis=1)[:, None] - before
    below = np.cumsum(apart, axis=1)[:, :-1]
    may = (before >= LEAST_BEFORE) & (after >= LEAST_AFTER)
    parts = np.maximum(before, 1.0), np.maximum(after, 1.0)
    gained = np.where(may, below**2 / parts[0] + below**2 / parts[1], -1.0)  # deviations add up to zero
    best, rows = gained.argmax(axis=1), np.arange(len(apart))
    size = np.abs(below[rows, best]) * (1 / parts[0] + 1 / parts[1])[rows, best]
    error = noise * np.sqrt((1 / parts[0] + 1 / parts[1])[rows, best])
    left = (apart**2).sum(axis=1) - gained[rows, best]
    better = may[rows, best] & (size > np.maximum(LEAST_STEP, STEP_NOISE * error)) & (left < missed)
    return best + 1, np.asarray(better, dtype=np.bool_)
