"""What a schedule means for a VM: expected breaches of its RPO, what a loss would cost, and the work it makes.

Schedules are starts in minutes of a UTC day, the same every day.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from vmcellar.analysis.loads import DAY_MINUTES, Load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FAILURES, MOST_FAILURES = 4, 40
"""Failures in a row beyond which nothing is counted; the second where a VM fails so often that more are not `RARE`."""
RARE = 1e-5

Starts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """How long a VM's points are kept: `days` at the most (inf: for ever), and `points` of them (None: all of these);
    `there` is how many there are now.
    """

    days: float = inf
    points: int | None = None
    there: float = 0.0


@dataclass(frozen=True, slots=True)
class Need:
    """What policy asks for a VM: `rpo` in seconds (None: no target), `window` as (first, last) minute of a UTC day in
    which runs may start and must end, over midnight when last is not after first (None: any time), and its host. A
    `fixed` VM keeps the schedule that it has. `breach_cost` is what being over the RPO once costs, in the currency of
    the tiers' prices (None: nobody has said). `own` are the runs a day that it had before any advice (None: today's).
    """

    vm: str
    host: str = "local"
    rpo: float | None = None
    window: tuple[int, int] | None = None
    fixed: bool = False
    kept: Kept = Kept()
    breach_cost: float | None = None
    own: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """How many backups a host runs at once, and the bytes a second that it may write to the tier `store`, by minute of
    a UTC day (1440 values, inf: no limit; none: never a limit).
    """

    name: str = "local"
    concurrent: int = 2
    writes: tuple[float, ...] = ()
    store: str = "hot"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a schedule means for a VM: breaches of its RPO per day and the hours over it, bytes that a loss would cost
    on average, seconds of work a day.
    """

    breaches: float
    late_hours: float
    exposure: float
    seconds: float


def judge(load: Load, starts: Starts, rpo: float | None) -> Judgement:
    """What runs at these minutes of every day mean for a VM."""
    begins = np.array(sorted(starts), dtype=np.float64)
    gaps = np.diff(begins, append=begins[0] + DAY_MINUTES)
    changed = load.upto(begins) - load.upto(begins - np.roll(gaps, 1))
    took = load.seconds(changed)
    ends = begins + gaps + np.roll(took, -1) / 60
    return Judgement(
        *_breaches(load, gaps * 60, took, rpo),
        _exposure(load, begins, ends) / DAY_MINUTES,
        load.day_seconds(len(starts)),
    )


def _breaches(load: Load, gaps: Floats, took: Floats, rpo: float | None) -> tuple[float, float]:
    """Expected breaches a day, and hours over the RPO: after each good run, so many fail in a row that the next good
    one comes too late.
    """
    if rpo is None:
        return 0.0, 0.0
    total, hours, waited = 0.0, 0.0, np.zeros_like(gaps)
    for failed in range(_deepest(load.fails)):
        waited = waited + np.roll(gaps, -failed)
        after = np.roll(took, -(failed + 1))
        late = _chance_over(rpo - waited, after, load.spread) * load.fails**failed * (1 - load.fails) ** 2
        total += float(late.sum())
        hours += float((late * np.maximum(waited + after - rpo, 0.0)).sum()) / 3600
    return total, hours


def _deepest(fails: float) -> int:
    """How many failures in a row count, and one more: `FAILURES`, or more where even those are no rare thing."""
    if fails**FAILURES < RARE:
        return FAILURES
    return min(ceil(log(RARE) / log(min(fails, 0.99))), MOST_FAILURES)


def _chance_over(limit: Floats, usual: Floats, spread: float) -> Floats:
    """Probability that a log-normal time is over a limit."""
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.log(usual / limit) / spread
    return np.asarray(np.where(limit <= 0, 1.0, ndtr(away)), dtype=np.float64)


def _exposure(load: Load, begins: Floats, ends: Floats) -> float:
    """Byte-minutes a day of change that is in no point: from each start to the end of the next run."""
    parts = np.linspace(0, 1, 9)
    times = begins[:, None] + (ends - begins)[:, None] * parts
    lost = load.upto(times) - load.upto(begins)[:, None]
    return float((np.trapezoid(lost, times, axis=1)).sum())


def spread_runs(runs: int, need: Need, first: int = 0) -> Starts:
    """So many starts, evenly over the day or the window, moved by `first` minutes."""
    begin, length = open_time(need)
    return tuple(sorted({round(begin + (first + k * length / runs) % length) % DAY_MINUTES for k in range(runs)}))


def open_time(need: Need) -> tuple[int, int]:
    """First minute and length of the time in which runs may start."""
    if need.window is None:
        return 0, DAY_MINUTES
    begin, end = need.window
    return begin, (end - begin) % DAY_MINUTES or DAY_MINUTES


def inside(need: Need, starts: Starts) -> bool:
    """Whether all start when they may."""
    begin, length = open_time(need)
    return all((start - begin) % DAY_MINUTES < length for start in starts)
