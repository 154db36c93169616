"""Models of change: each takes what is known up to an origin and gives the next steps, for all disks at once.

They work on the logarithm because change is a product of level, season and noise; an error on that scale is a ratio.
A model is a function (known, season, ahead) -> (disks, ahead), with not-a-number where it cannot tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FLOOR = float(64 << 10)
"""Added before the logarithm: one dirty cluster, the least that can change."""
WEEKS = 8
LEAST_KNOWN = 1.0
"""Seasons that a model must have seen, as known steps."""

Model = Callable[["Floats", int, int], "Floats"]


def to_log(values: Floats) -> Floats:
    """Logarithm of bytes."""
    return np.asarray(np.log(values + FLOOR), dtype=np.float64)


def from_log(logs: Floats) -> Floats:
    """Bytes of a logarithm, never below zero."""
    return np.asarray(np.maximum(np.exp(logs) - FLOOR, 0.0), dtype=np.float64)


def quiet_mean(values: Floats, axis: int | tuple[int, ...], keepdims: bool = False) -> Floats:
    """Mean of what is known; not-a-number where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis, keepdims=keepdims)
    total = np.where(known, values, 0.0).sum(axis=axis, keepdims=keepdims)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(count > 0, total / count, np.nan), dtype=np.float64)


def quiet_median(values: Floats, axis: int | tuple[int, ...], keepdims: bool = False) -> Floats:
    """Median of what is known; not-a-number where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmedian(values, axis=axis, keepdims=keepdims), dtype=np.float64)


def weeks_of(known: Floats, season: int, weeks: int) -> Floats:
    """The last `weeks` seasons as (disks, weeks, season), padded with not-a-number at the front."""
    length = weeks * season
    if known.shape[1] < length:
        known = np.pad(known, ((0, 0), (length - known.shape[1], 0)), constant_values=np.nan)
    return known[:, known.shape[1] - length :].reshape(known.shape[0], weeks, season)


def repeat(profile: Floats, ahead: int) -> Floats:
    """A season's profile over `ahead` steps."""
    return np.tile(profile, (1, -(-ahead // profile.shape[1])))[:, :ahead]


def seasonal_naive(known: Floats, season: int, ahead: int) -> Floats:
    """The baseline: the same step of the last week; where that is unknown, of the week before, up to four; where none
    of the four is known, the mean of the others.
    """
    past = weeks_of(known, season, 4)
    out = past[:, -1].copy()
    for back in (2, 3, 4):
        out = np.where(np.isnan(out), past[:, -back], out)
    return repeat(np.where(np.isnan(out), quiet_mean(out, axis=1, keepdims=True), out), ahead)


def _weighted(past: Floats, decay: float) -> Floats:
    weights = decay ** np.arange(past.shape[1])[::-1]
    known = ~np.isnan(past)
    total = np.einsum("swt,w->st", np.where(known, past, 0.0), weights)
    weight = np.einsum("swt,w->st", known.astype(np.float64), weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(weight > 0, total / weight, np.nan), dtype=np.float64)


def profile(known: Floats, season: int, decay: float) -> Floats:
    """Level of each step of the week: weighted mean over eight weeks; steps never seen take the day's or the mean."""
    past = weeks_of(known, season, WEEKS)
    slots = _weighted(past, decay)
    day = season // 7
    by_hour = quiet_mean(slots.reshape(-1, 7, day), axis=1)
    slots = np.where(np.isnan(slots), np.tile(by_hour, (1, 7)), slots)
    return np.where(np.isnan(slots), quiet_mean(slots, axis=1, keepdims=True), slots)


def _shrunk(slots: Floats, season: int, share: float) -> Floats:
    """Between each step's own level and hour of day plus day of week, which is steadier."""
    day = season // 7
    cube = slots.reshape(-1, 7, day)
    mean = cube.mean(axis=(1, 2), keepdims=True)
    weekdays = cube.mean(axis=2, keepdims=True) - mean
    smooth = (_hours_by_group(cube, weekdays) + weekdays).reshape(slots.shape)
    return np.asarray(share * slots + (1 - share) * smooth, dtype=np.float64)


def _hours_by_group(cube: Floats, weekdays: Floats) -> Floats:
    """Hour-of-day profile, apart for quiet and busy days of the week, less the level of the day."""
    busy = weekdays >= np.median(weekdays, axis=1, keepdims=True) - 0.25 * np.ptp(weekdays, axis=1, keepdims=True)
    level_free = cube - weekdays
    out = np.empty_like(cube)
    for group in (busy, ~busy):
        count = np.maximum(group.sum(axis=1, keepdims=True), 1)
        mean = np.where(group, level_free, 0.0).sum(axis=1, keepdims=True) / count
        out = np.where(group, mean, out)
    return out


def _level(known: Floats, slots: Floats, season: int, days: int) -> Floats:
    """How far the last `days` days were from the profile; zero when unknown."""
    span = days * season // 7
    recent = known[:, max(known.shape[1] - span, 0) :]
    expected = np.tile(slots, (1, -(-span // season)))[:, -recent.shape[1] :]
    return np.nan_to_num(quiet_mean(recent - expected, axis=1, keepdims=True))


def weekly(decay: float, share: float = 1.0, follow: float = 0.0, days: int = 7) -> Model:
    """The week's profile, `share` of it step by step, moved by `follow` times the level of the last `days` days."""

    def forecast(known: Floats, season: int, ahead: int) -> Floats:
        slots = _shrunk(profile(known, season, decay), season, share)
        return repeat(slots + follow * _level(known, slots, season, days), ahead)

    return forecast


def trending(known: Floats, season: int, ahead: int) -> Floats:
    """The smooth week on a straight trend of the last eight weeks' levels, of which nine tenths go on."""
    levels = quiet_mean(weeks_of(known, season, WEEKS), axis=2)
    weeks = np.where(np.isnan(levels), np.nan, np.arange(WEEKS)[None, :] + 0.0)
    away = weeks - quiet_mean(weeks, axis=1, keepdims=True)
    square = np.nansum(away**2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.nansum(away * levels, axis=1) / square
    slope = 0.9 * np.where(square > 5, slope, 0.0)[:, None] / season
    back = np.arange(-known.shape[1], 0)[None, :] + 1
    made = weekly(decay=1.0, share=0.3, follow=0.5)(known - slope * back, season, ahead)
    return np.asarray(made + slope * np.arange(1, ahead + 1)[None, :], dtype=np.float64)


def typical(known: Floats, season: int, ahead: int) -> Floats:
    """Median of each step of the week: not led astray by bursts."""
    slots = quiet_median(weeks_of(known, season, WEEKS), axis=1)
    return repeat(np.where(np.isnan(slots), quiet_median(slots, axis=1, keepdims=True), slots), ahead)


def flat(known: Floats, season: int, ahead: int) -> Floats:
    """Median of the last four weeks, for disks without a season."""
    return repeat(quiet_median(known[:, -4 * season :], axis=1, keepdims=True), ahead)


MODELS: dict[str, Model] = {
    "week": weekly(decay=1.0),
    "smooth week": weekly(decay=0.9, share=0.3, follow=0.5),
    "smooth week at the last week's level": weekly(decay=0.9, share=0.3, follow=0.9),
    "smooth week at the last days' level": weekly(decay=0.9, share=0.3, follow=0.9, days=3),
    "smooth week on a trend": trending,
    "typical week": typical,
    "flat": flat,
}
BASELINE = "seasonal naive"
