"""Prediction intervals from what past forecasts of the same disk missed by: split conformal prediction, on ratios.

The errors of the rolling backtest are ratios of what came to what was said. Their quantiles, taken at the ranks that a
finite sample asks for, are the interval: no assumption about the shape of the noise. Errors are first divided by the
usual size of errors of their group of steps (quiet, middle, busy), because quiet hours are noisier as ratios.
Sources: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World"; Lei et al. 2018, "Distribution-Free
Predictive Inference for Regression".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVELS = (80, 95)
GROUPS = 3
SHARED, LONE, FEW = 0.4, -0.2, 2.0
"""The errors of one forecast share its level's error, and few errors know little of their tails: an interval is wider
by `SHARED` / forecasts + `LONE` / forecasts squared + `FEW` / errors.
"""
ENOUGH = 200
"""Errors with which a group of steps has quantiles of its own; with fewer it takes those of all, scaled."""
PRIOR = 20.0
"""How many errors of its own a group needs to weigh as much as all errors of the disk."""


def bounds(errors: Floats, forecasts: Floats, level: int) -> tuple[Floats, Floats]:
    """The lower and upper quantile per row of (rows, errors), with not-a-number for errors that are unknown.

    `forecasts` is how many forecasts of each row they come from. The ranks are those of conformal prediction; where
    there are too few errors for a rank, the outermost error stands and is widened by a tenth of the spread for each
    rank that is missing.
    """
    tail = (1 - level / 100) / 2
    ordered = np.sort(errors, axis=1)
    count = (~np.isnan(ordered)).sum(axis=1)
    rank = (count + 1) * tail - 1
    errors_known = np.maximum(count, 1)
    made = np.maximum(forecasts, 1)
    wider = 1 + SHARED / made + LONE / made**2 + FEW / errors_known
    return _at(ordered, rank) * wider, _at(ordered, count - 1 - rank) * wider


def bounds_of_one_by_one(errors: Floats, level: int) -> tuple[float, float]:
    """The lower and upper quantile of errors that each come of a forecast of its own and are of one size: exact at the
    ranks of conformal prediction, with nothing added.

    Where there are too few errors for the ranks, those of a normal sample: Student's t about the mean.
    """
    tail, count = (1 - level / 100) / 2, len(errors)
    rank = (count + 1) * tail - 1
    if rank >= 0:
        low, high = _at(np.tile(np.sort(errors), (2, 1)), np.array([rank, count - 1 - rank]))
        return float(low), float(high)
    middle = float(errors.mean())
    spread = float(errors.std(ddof=1)) * float(np.sqrt(1 + 1 / count)) if count > 1 else 0.0
    reach = float(stdtrit(max(count - 1, 1), 1 - tail)) * spread
    return middle - reach, middle + reach


def bounds_by_group(errors: Floats, groups: NDArray[np.int64], forecasts: Floats, level: int) -> tuple[Floats, Floats]:
    """`bounds` as (rows, groups): of the group's own errors where there are `ENOUGH`, else of all."""
    low, high = (np.repeat(end[:, None], GROUPS, axis=1) for end in bounds(errors, forecasts, level))
    for group in range(GROUPS):
        own = np.where(groups == group, errors, np.nan)
        enough = (~np.isnan(own)).sum(axis=1) >= ENOUGH
        if enough.any():
            low[enough, group], high[enough, group] = bounds(own[enough], forecasts[enough], level)
    return low, high


def _at(ordered: Floats, rank: Floats) -> Floats:
    """Linear between ranks; past the ends on along a tenth of the spread per rank."""
    count = (~np.isnan(ordered)).sum(axis=1)
    last = np.maximum(count - 1, 0)
    inside = np.clip(rank, 0, last)
    below = np.floor(inside).astype(np.int64)
    above = np.minimum(below + 1, last)
    rows = np.arange(len(ordered))
    value = ordered[rows, below] + (inside - below) * (ordered[rows, above] - ordered[rows, below])
    spread = ordered[rows, last] - ordered[rows, 0]
    return np.asarray(value + (rank - inside) * 0.1 * spread, dtype=np.float64)


def groups_of(predicted: Floats) -> NDArray[np.int64]:
    """Quiet, middle or busy (0, 1, 2) for every step, by the disk's own forecast."""
    order = predicted.argsort(axis=1).argsort(axis=1)
    return np.asarray(np.minimum(order * GROUPS // max(predicted.shape[1], 1), GROUPS - 1), dtype=np.int64)


def group_sizes(errors: Floats, groups: NDArray[np.int64]) -> Floats:
    """Usual size of errors per disk and group, drawn towards the disk's own where a group has few."""
    overall = _size(errors)
    out = np.empty((len(errors), GROUPS))
    for group in range(GROUPS):
        own = np.where(groups == group, errors, np.nan)
        count = (~np.isnan(own)).sum(axis=1)
        size = np.nan_to_num(_size(own), nan=0.0)
        out[:, group] = (count * size + PRIOR * overall) / (count + PRIOR)
    return np.maximum(out, 1e-6)


def _size(errors: Floats) -> Floats:
    known = ~np.isnan(errors)
    count = np.maximum(known.sum(axis=1), 1)
    return np.asarray(np.where(known, np.abs(errors), 0.0).sum(axis=1) / count, dtype=np.float64)
