"""How far off a tier's forecasts are, from what those of each of its disks missed in a rolling backtest.

A tier has few past forecasts over 30 days, as they overlap, but many disks. Where disks miss independently, the squares
of what they miss add up, which tells far more than the few sums do; what the sums missed beyond that, disks missed
together, and it counts as far as it stands out of chance. Past forecasts count that knew at least half of what is known
now, month ends among it, and of each disk those since its last lasting step: like the forecast, its error is for levels
as they are. Disks that go are counted, and every disk may go next: few have gone, so what these missed depends on how
large they were.
Sources: Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance Components" (how many degrees of
freedom a sum of squares has); Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 5.10 (rolling origins).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.analysis.growth import LEAST_AFTER, WEEKS, Added, gone, stands_out, stepped, trend_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

TESTED = (7, 14, 30, 60)
"""Days ahead."""
LEAST_TESTED = 3
"""With fewer past forecasts over so many days the error is taken to be that over fewer days."""
LEAST_SHARE = 0.5
"""A past forecast knew at least this share of the days that are known now, up to `WEEKS`; and the disks that count made
up at least this share of it.
"""


@dataclass(frozen=True, slots=True)
class Miss:
    """The standard error of what is added in so many `days`, as a share of it, and the degrees of freedom it has."""

    days: int
    error: float
    freedom: float


@dataclass(frozen=True, slots=True)
class _Tests:
    """Past forecasts over so many days, newest first, a week apart: what each disk that counts missed, as a share of
    what these disks were said to add; (origins, disks and full runs).
    """

    days: int
    missed: Floats

    def variance(self) -> tuple[float, float]:
        """Of the sum over disks, and its degrees of freedom."""
        origins = len(self.missed)
        apart = max(((origins - 1) * 7 + self.days) / self.days, 1.0)  # as many as did not overlap
        own = (self.missed**2).mean(axis=0)
        alone = max(float(own.sum()), 1e-12)
        together = float((self.missed.sum(axis=1) ** 2).mean()) / alone - 1
        more = float(stands_out(np.array(max(together, 0.0)), np.array(np.sqrt(2 / apart))))
        freedom = apart * alone**2 / max(float((own**2).sum()), 1e-24)
        return alone * (1 + more), (1 + more) ** 2 / (1 / freedom + more**2 / apart)


def misses_of(added: Added, damping: float, least_days: int) -> list[Miss]:
    """By days ahead; none with fewer than `LEAST_TESTED` past forecasts of a week. At least `least_days` lie before
    each of these.
    """
    now = trend_of(added)
    away, rate = gone(added)
    found: list[Miss] = []
    latest: tuple[float, float] | None = None
    for tests in _tested(added, damping, least_days):
        if len(tests.missed) >= LEAST_TESTED:
            latest = tests.variance()
        if latest is None:
            return []
        said = now.within(tests.days, damping)
        leaving = rate * tests.days / 7
        shares = said[:-1][~away] / max(float(said.sum()), 1.0)
        lost = leaving / 3 * float((shares**2).sum()) + (leaving / 2) ** 2  # at any time of these days alike
        found.append(Miss(tests.days, float(np.sqrt(latest[0] + lost)), latest[1]))
    return found


def _tested(added: Added, damping: float, least_days: int) -> list[_Tests]:
    """Of all `TESTED`."""
    known = min(added.days, 7 * WEEKS)
    least = max(least_days, int(np.ceil(LEAST_SHARE * known)), added.days - 7 * (WEEKS + 1))
    away, since = gone(added)[0], stepped(added)
    rows: dict[int, list[Floats]] = {days: [] for days in TESTED}
    knew: dict[int, list[bool]] = {days: [] for days in TESTED}
    seasoned = added.month_ends_known()
    for origin in range(added.days - 7, least - 1, -7):
        before = added.until(origin)
        then, knows = trend_of(before), not seasoned or before.month_ends_known()
        counts = np.append(~away & ((since == 0) | (origin >= since + 7 * LEAST_AFTER)), True)
        for days, each in rows.items():
            if origin + days > added.days:
                continue
            said = then.within(days, damping)
            sure = float(said[counts].sum())
            if sure > 0 and sure >= LEAST_SHARE * said.sum():
                each.append(np.where(counts, added.between(origin, origin + days) - said, 0.0) / sure)
                knew[days].append(knows)
    return [_Tests(days, np.array(_enough(each, knew[days]))) for days, each in rows.items()]


def _enough(rows: list[Floats], knew: list[bool]) -> list[Floats]:
    """Past forecasts that knew what month ends add, if this one does: others missed by it. All, where these are few."""
    some = [row for row, knows in zip(rows, knew, strict=True) if knows]
    return some if len(some) >= LEAST_TESTED else rows
