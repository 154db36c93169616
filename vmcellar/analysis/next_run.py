"""The next run of every VM: when it is due, how much it will find changed and store, and how long it will take.

Size comes from the forecast of change over all disks, which has intervals of its own: those of disks cannot be added,
as their errors go together more or less. What is stored of it and how long it takes come from the last good runs of the
same VM. The two errors are independent, so the logarithms of their interval widths add as squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vmcellar.analysis.durations import LEAST_RUNS, as_of_late, followed, line_of
from vmcellar.analysis.grid import HOUR, seconds_of
from vmcellar.analysis.intervals import LEVELS, bounds_of_one_by_one

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vmcellar.analysis.forecast import Forecast, Outlook

    Floats = NDArray[np.float64]

RUNS = 60
GUESS = (10.0, 1 / (100 << 20))


@dataclass(frozen=True, slots=True)
class Range:
    """A median with its intervals: `low` and `high` by level (80, 95)."""

    middle: float
    low: dict[int, float]
    high: dict[int, float]


@dataclass(frozen=True, slots=True)
class NextRun:
    """What the next incremental run of a VM is expected to be; bytes over all of its disks, seconds of the whole run.

    `due` is in seconds since the epoch: one usual interval after the last good run, or the moment of the forecast when
    that is past.
    """

    vm: str
    due: float
    changed: Range
    stored: Range
    seconds: Range


@dataclass(frozen=True, slots=True)
class Runs:
    """The last good incremental runs of a VM, oldest first; bytes over all disks, `cadence` the usual
    seconds from run to run.
    """

    vm: str
    last: float
    changed: Floats
    stored: Floats
    seconds: Floats
    cadence: float

    def timed(self) -> tuple[Floats, Floats]:
        """Bytes changed and seconds of the runs of which it is known how long they took."""
        known = self.seconds > 0
        return self.changed[known], self.seconds[known]

    def throughput(self) -> tuple[float, float]:
        """Seconds of a run without change, and seconds per byte, as runs are of late.

        A guess (`GUESS`) while fewer than `LEAST_RUNS` runs are timed.
        """
        changed, seconds = self.timed()
        if len(changed) < LEAST_RUNS:
            return GUESS
        rest, per_byte = line_of(changed, seconds)
        by = float(np.exp(followed(np.log(seconds / (rest + per_byte * changed)))[0]))
        return by * rest, by * per_byte

    def off_line(self) -> Floats:
        """Logarithms of how much longer timed runs took than was to be said before each; of all while there are few."""
        changed, seconds = self.timed()
        rest, per_byte = line_of(changed, seconds) if len(changed) >= LEAST_RUNS else GUESS
        return followed(np.log(seconds / (rest + per_byte * changed)))[1] if len(changed) else np.zeros(0)


def runs_of(frame: pd.DataFrame, now: float, most: int = RUNS) -> Iterator[Runs]:
    """The last `most` good incremental runs of every VM that has any, at `now` (seconds since the epoch)."""
    started = seconds_of(frame["started"])
    usable = frame["ok"].to_numpy() & (frame["kind"].to_numpy() == "incremental") & (started <= now)
    vm_codes, vms = pd.factorize(frame["vm"], sort=True)
    rows = np.flatnonzero(usable)
    rows = rows[np.lexsort((started[rows], vm_codes[rows]))]
    sizes = {name: frame[name].to_numpy()[rows].astype(np.float64) for name in ("bytes_changed", "bytes_stored")}
    times, seconds = started[rows], frame["seconds"].to_numpy()[rows]
    for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(vm_codes[rows])) + 1):
        if len(part):
            begins = np.flatnonzero(np.diff(times[part], prepend=-np.inf) > 0)
            changed, stored = (np.add.reduceat(sizes[name][part], begins)[-most:] for name in sizes)
            vm = str(vms[vm_codes[rows[part[0]]]])
            took, when = seconds[part][begins][-most:], times[part][begins][-most:]
            cadence = float(np.median(np.diff(when))) if len(when) > 1 else 86400.0
            yield Runs(vm, float(when[-1]), changed, stored, took, cadence)


def next_runs(frame: pd.DataFrame, outlook: Outlook) -> list[NextRun]:
    """The next run of every VM of which all disks have a forecast and which has `LEAST_RUNS` timed good ones."""
    whole = outlook.of_vms()
    return [
        _next_run(runs, whole[runs.vm], outlook.now)
        for runs in runs_of(frame, outlook.now)
        if runs.vm in whole and len(runs.timed()[0]) >= LEAST_RUNS
    ]


def _next_run(runs: Runs, change: Forecast, now: float) -> NextRun:
    due = max(runs.last + change.cadence, now)
    changed = _change(change, due - runs.last)
    some = runs.changed > 0
    share = _spread_of(np.log(np.maximum(runs.stored[some], 1.0) / runs.changed[some]) if some.any() else np.zeros(1))
    stored = _times(changed, share)
    seconds = _times(_on_line(changed, *runs.throughput()), _spread_of(as_of_late(runs.off_line())))
    return NextRun(runs.vm, due, changed, stored, seconds)


def _change(one: Forecast, span: float) -> Range:
    """Change over `span` seconds from the first step on; one scale for the interval as for a step."""
    steps = max(1, min(round(span / (one.step * HOUR)), len(one.middle)))
    share = span / (steps * one.step * HOUR)

    def over(values: Floats) -> float:
        return float(values[:steps].sum()) * share

    low, high = ({level: over(side[level]) for level in LEVELS} for side in (one.low, one.high))
    return Range(over(one.middle), low, high)


def _spread_of(logs: Floats) -> Range:
    """Median and interval of ratios, as logarithms."""
    ends = {level: bounds_of_one_by_one(logs, level) for level in LEVELS}
    low, high = ({level: both[side] for level, both in ends.items()} for side in (0, 1))
    return Range(float(np.median(logs)), low, high)


def _on_line(one: Range, rest: float, per_byte: float) -> Range:
    """Seconds of runs that find so much changed."""
    low, high = ({level: rest + per_byte * side[level] for level in LEVELS} for side in (one.low, one.high))
    return Range(rest + per_byte * one.middle, low, high)


def _times(base: Range, ratio: Range) -> Range:
    """A range times an independent ratio (logarithms); an end at nothing stays there."""
    middle = base.middle * float(np.exp(ratio.middle))

    def end(own: float, other: float, sign: int) -> float:
        if own <= 0 or base.middle <= 0:
            return own
        return middle * float(np.exp(sign * np.hypot(np.log(own / base.middle), other - ratio.middle)))

    return Range(
        middle,
        {level: end(base.low[level], ratio.low[level], -1) for level in LEVELS},
        {level: end(base.high[level], ratio.high[level], 1) for level in LEVELS},
    )
