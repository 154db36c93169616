"""Forecasts of change per disk, with calibrated intervals, the reasons for refusals, and what the model is worth.

`forecast_change(frame)` is the way in. It takes a history frame (docs/analysis.md), puts change on an even grid, takes
out level shifts and month ends, lets the models compete with the seasonal naive baseline in a rolling backtest per
disk, and forecasts two weeks. The sum over a VM's disks is forecast in the same way, as a series of its own: only what
past forecasts of the sum missed by tells how far the disks' errors go together. Pure functions: nothing is read or
written, threads do not matter.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vmcellar.analysis import backtest, intervals, regimes
from vmcellar.analysis.clock import by_the_clock, hours_ahead
from vmcellar.analysis.grid import HOUR, Grid, Series, grids, seconds_of, series_of, step_for
from vmcellar.analysis.models import BASELINE, FLOOR, from_log, to_log

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_WEEKS = 3
LEAST_COVERED = 0.5
STALE = 3.0
LEAST_POINTS = 7
UNTRIED = 1.2
"""How much larger errors of the second week ahead are taken to be than those of the first while none was seen."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A disk that gets no forecast, and why."""

    vm: str
    disk: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """One disk's next two weeks: arrays have a value per step; bytes per step. `disk` is empty for a VM's sum.

    `middle` is the median of what may come, `mean` what to add up; `low` and `high` are by level (80, 95). `starts` are
    seconds since the epoch. `mase` is the backtest's error by the baseline's; 1 where the baseline is used.
    """

    vm: str
    disk: str
    step: int
    starts: Floats
    middle: Floats
    mean: Floats
    low: dict[int, Floats]
    high: dict[int, Floats]
    model: str
    mase: float
    points: int
    shift_days: int
    month_end: float
    cadence: float

    @property
    def note(self) -> str:
        """What a reader should know about how it was made."""
        said = [f"{self.model} (MASE {self.mase:.2f})" if self.model != BASELINE else "baseline: no model beat it"]
        if self.shift_days >= 0:
            said.append(f"level shift {self.shift_days} days ago")
        if self.month_end > 0:
            said.append(f"month ends times {np.exp(self.month_end):.1f}")
        return "; ".join(said)

    def expected(self, start: float, end: float) -> float:
        """Bytes expected to change between two moments (seconds since the epoch) within the two weeks."""
        edges = np.append(self.starts, self.starts[-1] + self.step * HOUR)
        total = np.concatenate(([0.0], np.cumsum(self.mean)))
        return float(np.interp(end, edges, total) - np.interp(start, edges, total))


@dataclass(frozen=True, slots=True)
class Outlook:
    """Forecasts and refusals of one history, by VM and disk; `totals` are those of VMs with several disks, all of which
    have a forecast.
    """

    now: float
    forecasts: tuple[Forecast, ...]
    refusals: tuple[Refusal, ...]
    totals: tuple[Forecast, ...] = ()

    def of_vms(self) -> dict[str, Forecast]:
        """The forecast over all disks of each VM that has one."""
        refused, disks = {refusal.vm for refusal in self.refusals}, Counter(one.vm for one in self.forecasts)
        lone = {one.vm: one for one in self.forecasts if disks[one.vm] == 1 and one.vm not in refused}
        return lone | {one.vm: one for one in self.totals}


def forecast_change(frame: pd.DataFrame, now: float | None = None, zone: tzinfo = UTC) -> Outlook:
    """The next two weeks of every disk; `now` in seconds since the epoch, else the last start in the history.

    Guests are taken to live by the clock of `zone`: what they do at eight in the morning, they do at eight in summer
    and in winter.
    """
    if frame.empty:
        return Outlook(now or 0.0, (), ())
    moment = float(seconds_of(frame["started"]).max()) if now is None else now
    seen = by_the_clock(frame[frame["started"] <= _stamp(moment)], zone, moment)
    forecasts, refusals = _forecast(seen, moment, zone)
    disks, refused = Counter(one.vm for one in forecasts), {refusal.vm for refusal in refusals}
    several = [vm for vm, count in disks.items() if count > 1 and vm not in refused]
    totals = _forecast(_sums(seen, several), moment, zone)[0] if several else []
    return Outlook(
        moment,
        tuple(sorted(forecasts, key=_name)),
        tuple(sorted(refusals, key=_name)),
        tuple(sorted(totals, key=_name)),
    )


def _forecast(frame: pd.DataFrame, moment: float, zone: tzinfo) -> tuple[list[Forecast], list[Refusal]]:
    series, refusals = [], []
    for one in series_of(frame):
        reason = unfit(one, moment)
        if reason:
            refusals.append(Refusal(one.vm, one.disk, reason))
        else:
            series.append(one)
    forecasts: list[Forecast] = []
    for grid in grids(series, moment):
        made, refused = _forecast_grid(grid, zone, moment)
        forecasts += made
        refusals += refused
    return forecasts, refusals


def _sums(frame: pd.DataFrame, vms: list[str]) -> pd.DataFrame:
    """The runs of these VMs, each as of one disk; one in which any disk was read in full counts as a full."""
    rows = frame.loc[frame["vm"].isin(vms), ["vm", "run_id", "started", "kind", "ok", "bytes_changed"]]
    runs = rows.assign(other=rows["kind"] != "incremental").groupby(["vm", "run_id"], observed=True, sort=False)
    sums = runs.agg(
        started=("started", "min"), ok=("ok", "all"), other=("other", "any"), bytes_changed=("bytes_changed", "sum")
    ).reset_index()
    return sums.assign(disk="", kind=np.where(sums["other"], "full", "incremental"))


def _name(one: Forecast | Refusal) -> tuple[str, str]:
    return one.vm, one.disk


def _stamp(moment: float) -> Any:
    return pd.Timestamp(moment, unit="s", tz="UTC")


def unfit(one: Series, now: float) -> str:
    """Why a disk's history cannot carry a forecast; empty when it can."""
    weeks = (one.ends[-1] - one.ends[0]) / (7 * 86400)
    if weeks < LEAST_WEEKS:
        return f"{weeks * 7:.1f} days of history; {LEAST_WEEKS} weeks are needed"
    if step_for(one.cadence) is None:
        return f"backed up every {one.cadence / HOUR:.0f} hours; a daily backup at least is needed"
    age = now - one.ends[-1]
    if age > STALE * max(one.cadence, HOUR):
        return f"no good run for {age / HOUR:.0f} hours, though usual is every {one.cadence / HOUR:.1f}: gone or broken"
    return ""


def _forecast_grid(grid: Grid, zone: tzinfo, now: float) -> tuple[list[Forecast], list[Refusal]]:
    kept = regimes.separate(grid, to_log(grid.values))
    tested = backtest.run(kept.logs, grid.season)
    ahead = backtest.AHEAD_SEASONS * grid.season
    logs = _predict(kept.logs, tested, grid.season, ahead)
    month_ends = regimes.month_end_steps(grid, 0, ahead)
    lows, highs = _bounds(tested, logs, grid.season)
    means = logs + np.log(_mean_by_median(tested))[:, None]
    added = kept.month_end[:, None] * month_ends
    starts = grid.middles(0, ahead) - grid.step * HOUR / 2
    order = _order(starts, grid.step, zone, now)
    logs, means, added = (np.take_along_axis(each, order, axis=1) for each in (logs, means, added))
    lows, highs = ({level: np.take_along_axis(side[level], order, axis=1) for level in side} for side in (lows, highs))
    made, refused = [], []
    for row, one in enumerate(grid.series):
        covered = float(np.mean(~np.isnan(grid.values[row, -4 * grid.season :])))
        if covered < LEAST_COVERED:
            refused.append(Refusal(one.vm, one.disk, f"only {covered:.0%} of the last four weeks are known"))
        elif tested.points[row] < LEAST_POINTS:
            refused.append(Refusal(one.vm, one.disk, "too few past weeks to test a forecast on"))
        else:
            made.append(
                Forecast(
                    vm=one.vm,
                    disk=one.disk,
                    step=grid.step,
                    starts=starts[row],
                    middle=_whole(from_log(logs[row] + added[row])),
                    mean=from_log(means[row] + added[row]),
                    low={level: _whole(from_log(lows[level][row] + added[row])) for level in intervals.LEVELS},
                    high={level: _whole(from_log(highs[level][row] + added[row])) for level in intervals.LEVELS},
                    model=tested.names[tested.model[row]],
                    mase=float(tested.mase[row]),
                    points=int(tested.points[row]),
                    shift_days=int(kept.shift_days[row]),
                    month_end=float(kept.month_end[row]),
                    cadence=one.cadence,
                )
            )
    return made, refused


def _order(starts: Floats, step: int, zone: tzinfo, now: float) -> NDArray[np.int64]:
    """Which step of a forecast by today's clock is that of each step: another one after the clocks change."""
    moved = np.rint(hours_ahead(starts.ravel(), zone, now) / step).astype(np.int64).reshape(starts.shape)
    count = starts.shape[1]
    return np.asarray(np.clip(np.arange(count)[None, :] + moved, 0, count - 1), dtype=np.int64)


def _whole(values: Floats) -> Floats:
    """What is under half a cluster is nothing: dirty bitmaps count whole ones."""
    return np.asarray(np.where(values < FLOOR / 2, 0.0, values), dtype=np.float64)


def _predict(logs: Floats, tested: backtest.Backtest, season: int, ahead: int) -> Floats:
    out = np.full((len(logs), ahead), np.nan)
    for index, model in enumerate(backtest.candidates().values()):
        rows = np.flatnonzero(tested.model == index)
        if len(rows):
            out[rows] = model(logs[rows], season, ahead)
    return out


def _bounds(tested: backtest.Backtest, logs: Floats, season: int) -> tuple[dict[int, Floats], dict[int, Floats]]:
    """Lower and upper logarithms by level; the first and the second week each from their own past errors."""
    low = {level: np.empty_like(logs) for level in intervals.LEVELS}
    high = {level: np.empty_like(logs) for level in intervals.LEVELS}
    rows = len(logs)
    for week in range(backtest.AHEAD_SEASONS):
        part = slice(week * season, (week + 1) * season)
        errors = _errors_of(tested, part, season).reshape(rows, -1)
        groups = intervals.groups_of(tested.predicted[:, :, part].reshape(rows, -1))
        sizes = intervals.group_sizes(errors, groups)
        scaled = errors / np.take_along_axis(sizes, groups, axis=1)
        coming = intervals.groups_of(logs[:, part])
        forecasts = np.isfinite(tested.errors[:, :, part]).any(axis=2).sum(axis=1).astype(np.float64)
        for level in intervals.LEVELS:
            below, above = intervals.bounds_by_group(scaled, groups, forecasts, level)
            low[level][:, part] = logs[:, part] + np.take_along_axis(below * sizes, coming, axis=1)
            high[level][:, part] = logs[:, part] + np.take_along_axis(above * sizes, coming, axis=1)
    return low, high


def _errors_of(tested: backtest.Backtest, week: slice, season: int) -> Floats:
    """Past errors of a week ahead, as they would be with what is known now; where there are none yet, those of the
    first week, a fifth larger.
    """
    errors = tested.errors * tested.learned[:, :, None]
    own = errors[:, :, week]
    none = ~np.isfinite(own).any(axis=(1, 2), keepdims=True)
    return np.asarray(np.where(none, UNTRIED * errors[:, :, :season], own), dtype=np.float64)


def _mean_by_median(tested: backtest.Backtest) -> Floats:
    """How much more came in total than the medians said, in the backtest; between 0.2 and 100."""
    predicted = tested.predicted.reshape(len(tested.mase), -1)
    truth = predicted + tested.errors.reshape(len(tested.mase), -1)
    known = np.isfinite(truth)
    came = np.where(known, np.exp(np.where(known, truth, 0.0)), 0.0).sum(axis=1) + FLOOR
    said = np.where(known, np.exp(np.where(known, predicted, 0.0)), 0.0).sum(axis=1) + FLOOR
    return np.asarray(np.clip(came / said, 0.2, 100.0), dtype=np.float64)
