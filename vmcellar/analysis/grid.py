"""From irregular runs to change on an even grid: bytes per step for every disk, not-a-number where nothing is known.

A run says how much changed since the last good run of its disk. That amount is spread evenly over the time between the
two. Full runs, failed runs and gaps of more than three usual intervals say nothing about a rate, so they leave holes.
The step follows the usual interval of the disk (1, 6 or 24 hours) and is aligned with its runs, so that a step is one
run where runs are regular.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

HOUR = 3600.0
STEPS = (1, 6, 24)
WEEK = 168
GAP = 3.0
NEEDED = ("vm", "disk", "started", "kind", "ok", "bytes_changed")


@dataclass(frozen=True, slots=True)
class Series:
    """The good runs of one disk, oldest first: `ends` in seconds since the epoch, `changed` in bytes (not-a-number
    for a full run), `cadence` the usual seconds from run to run, `rows` where they are in the frame.
    """

    vm: str
    disk: str
    ends: Floats
    changed: Floats
    cadence: float
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grid:
    """Change of the disks that share a step: `values[i, j]` is bytes of disk i in step j, `ends[i]` when its last step
    ends (seconds since the epoch), `season` the steps of a week.
    """

    step: int
    series: tuple[Series, ...]
    values: Floats
    ends: Floats

    @property
    def season(self) -> int:
        """Steps in a week."""
        return WEEK // self.step

    def panel(self, column: Floats, how: np.ufunc = np.add) -> Floats:
        """A column of the history's frame on the grid: each good run's figure in the step that ends nearest to it, of
        several runs in one step their sum, or what `how` makes of them and 0; not-a-number where none has one.
        """
        out = np.full(self.values.shape, np.nan)
        count = self.values.shape[1]
        for row, one in enumerate(self.series):
            index = count - 1 - np.rint((self.ends[row] - one.ends) / (self.step * HOUR)).astype(np.int64)
            figures = column[one.rows]
            inside = (index >= 0) & (index < count) & ~np.isnan(figures)
            index, figures = index[inside], figures[inside]
            out[row, index] = 0.0
            how.at(out[row], index, figures)
        return out

    def middles(self, first: int, last: int) -> Floats:
        """Seconds since the epoch of the middle of the steps `first` to `last`; 0 is the first after the grid."""
        offsets = (np.arange(first, last) + 0.5) * self.step * HOUR
        return np.asarray(self.ends[:, None] + offsets[None, :], dtype=np.float64)


def series_of(frame: pd.DataFrame) -> list[Series]:
    """The disks of a history with their good runs, ordered by VM and disk."""
    if frame.empty:
        return []
    vm_codes, vms = pd.factorize(frame["vm"], sort=True)
    disk_codes, disks = pd.factorize(frame["disk"], sort=True)
    started = seconds_of(frame["started"])
    code = vm_codes.astype(np.int64) * len(disks) + disk_codes
    order = np.lexsort((started, code))
    order = order[frame["ok"].to_numpy()[order]]
    code, started = code[order], started[order]
    changed = frame["bytes_changed"].to_numpy()[order].astype(np.float64)
    changed[(frame["kind"].to_numpy() != "incremental")[order]] = np.nan
    borders = np.flatnonzero(np.diff(code)) + 1
    found = []
    for rows in np.split(np.arange(len(code)), borders):
        if len(rows) == 0:
            continue
        ends = started[rows]
        vm, disk = divmod(int(code[rows[0]]), len(disks))
        cadence = float(np.median(np.diff(ends)[-60:])) if len(ends) > 1 else np.inf
        found.append(Series(str(vms[vm]), str(disks[disk]), ends, changed[rows], cadence, order[rows]))
    return found


def seconds_of(times: pd.Series) -> Floats:
    """Seconds since the epoch of UTC times of any unit."""
    return np.asarray(times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[ns]").view(np.int64)) / 1e9


def step_for(cadence: float) -> int | None:
    """Hours of the grid's step for a usual interval in seconds; None when it is over 30 hours."""
    for step in STEPS:
        if cadence <= 1.25 * step * HOUR:
            return step
    return None


def grids(series: list[Series], now: float, weeks: int = 24) -> list[Grid]:
    """The series by their step, each with the last `weeks` weeks before `now` (seconds since the epoch)."""
    found = []
    for step in STEPS:
        members = tuple(one for one in series if step_for(one.cadence) == step)
        if members:
            count = weeks * WEEK // step
            ends = np.array([_last_edge(one, step, now) for one in members])
            values = np.stack([spread(one, end, step, count) for one, end in zip(members, ends, strict=True)])
            found.append(Grid(step, members, values, ends))
    return found


def _last_edge(one: Series, step: int, now: float) -> float:
    """The last step's end at or before `now`, in phase with the series' runs."""
    length = step * HOUR
    phase = one.ends[-60:] % length
    angle = np.angle(np.mean(np.exp(2j * np.pi * phase / length))) / (2 * np.pi) % 1.0
    return float(np.floor(now / length - angle) * length + angle * length)


def spread(one: Series, end: float, step: int, count: int) -> Floats:
    """Bytes in each of `count` steps up to `end`; a step of which less than half is known is not-a-number."""
    edges = end + np.arange(-count, 1) * step * HOUR
    gaps = np.diff(one.ends)
    known = ~np.isnan(one.changed[1:]) & (gaps <= max(GAP * one.cadence, GAP * HOUR))
    if not known.any():
        return np.full(count, np.nan)
    amount = np.concatenate(([0.0], np.cumsum(np.where(known, one.changed[1:], 0.0))))
    covered = np.concatenate(([0.0], np.cumsum(np.where(known, gaps, 0.0))))
    amounts = np.diff(np.interp(edges, one.ends, amount))
    share = np.diff(np.interp(edges, one.ends, covered)) / (step * HOUR)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(share >= 0.5, amounts / share, np.nan), dtype=np.float64)
