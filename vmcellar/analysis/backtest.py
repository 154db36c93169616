"""The rolling backtest: every model forecasts the last weeks from what was known before them, and is held to the truth.

For each disk the model with the least absolute error in bytes is taken, if that beats the seasonal naive baseline by
`MARGIN`; otherwise the baseline stays, and the result says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.analysis.models import BASELINE, MODELS, Model, from_log, seasonal_naive

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ORIGINS = 12
AHEAD_SEASONS = 2
MARGIN = 0.97
LEARNING = 1.0
LEAST_SEEN = 2
"""Weeks that a model sees before its first forecast counts."""


@dataclass(frozen=True, slots=True)
class Backtest:
    """What the backtest of a grid's disks found.

    `model[i]` is an index into `names`, `mase[i]` its error by that of the baseline over the same steps (below one is
    better), `errors[i]` logarithms of truth by forecast with `predicted[i]` beside them, as (disks, origins, ahead),
    `points[i]` how many steps were compared. `learned[i]` is, by origin, how large an error is to be expected now where
    one of that origin was one: less, as models know more weeks now.
    """

    names: tuple[str, ...]
    model: NDArray[np.int64]
    mase: Floats
    errors: Floats
    predicted: Floats
    points: NDArray[np.int64]
    learned: Floats


def candidates() -> dict[str, Model]:
    """The baseline first, then the models."""
    return {BASELINE: seasonal_naive, **MODELS}


def run(logs: Floats, season: int) -> Backtest:
    """Backtest all models on (disks, steps) of logarithms that end now."""
    names = tuple(candidates())
    misses = np.zeros((len(names), len(logs)))
    points = np.zeros(len(logs), dtype=np.int64)
    truths, forecasts, seen = [], [], []
    for origin in _origins(logs.shape[1], season):
        truth = _ahead(logs, origin, AHEAD_SEASONS * season)
        made = _forecast_all(logs[:, :origin], season)
        forecasts.append(made)
        truths.append(truth)
        seen.append(_weeks(logs[:, :origin], season))
        compared = np.isfinite(truth[:, :season]) & np.isfinite(made[:, :, :season]).all(axis=0)
        points += compared.sum(axis=1)
        for index in range(len(names)):
            miss = np.abs(from_log(made[index, :, :season]) - from_log(truth[:, :season]))
            misses[index] += np.where(compared, miss, 0.0).sum(axis=1)
    if not truths:
        empty, one = np.full((len(logs), 1, AHEAD_SEASONS * season), np.nan), np.ones((len(logs), 1))
        return Backtest(names, np.zeros(len(logs), dtype=np.int64), one[:, 0], empty, empty, points, one)
    model, mase = _choose(misses)
    predicted = np.stack([made[model, np.arange(len(logs))] for made in forecasts], axis=1)
    errors = np.stack(truths, axis=1) - predicted
    learned = np.where(model[:, None] > 0, _learned(np.stack(seen, axis=1), _weeks(logs, season)), 1.0)
    return Backtest(names, model, mase, errors, predicted, points, learned)


def _weeks(logs: Floats, season: int) -> Floats:
    """How many weeks are known of each disk."""
    return np.asarray((~np.isnan(logs)).sum(axis=1) / season, dtype=np.float64)


def _learned(seen: Floats, now: Floats) -> Floats:
    """An average of n weeks misses the next one by the noise of both: its error is as the root of 1 + 1 / n. The
    baseline, which takes one week however many it knows, does not learn.
    """
    then = 1 + LEARNING / np.maximum(seen, 1.0)
    return np.asarray(np.sqrt((1 + LEARNING / np.maximum(now, 1.0))[:, None] / then), dtype=np.float64)


def _choose(misses: Floats) -> tuple[NDArray[np.int64], Floats]:
    best = misses.argmin(axis=0)
    base = misses[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = np.where(base > 0, misses.min(axis=0) / base, 1.0)
    model = np.where(gain < MARGIN, best, 0)
    return model, np.where(model > 0, gain, 1.0)


def _origins(steps: int, season: int) -> list[int]:
    """Columns that weekly forecasts start from, oldest first."""
    found = [steps - back * season for back in range(ORIGINS, 0, -1)]
    return [origin for origin in found if origin >= LEAST_SEEN * season]


def _ahead(logs: Floats, origin: int, ahead: int) -> Floats:
    """The truth after an origin, not-a-number beyond now."""
    known = logs[:, origin : origin + ahead]
    return np.pad(known, ((0, 0), (0, ahead - known.shape[1])), constant_values=np.nan)


def _forecast_all(known: Floats, season: int) -> Floats:
    """(models, disks, ahead); not-a-number for disks that have seen less than `LEAST_SEEN` weeks, less a quarter."""
    seen = (~np.isnan(known)).sum(axis=1) >= 0.75 * LEAST_SEEN * season
    out = np.full((len(candidates()), len(known), AHEAD_SEASONS * season), np.nan)
    if seen.any():
        for index, model in enumerate(candidates().values()):
            out[index, seen] = model(known[seen], season, AHEAD_SEASONS * season)
    return out
