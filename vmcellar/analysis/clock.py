"""Histories by the wall clock: where summer time begins or ends, work goes on at the same time of day, not of UTC.

What lies before a change of clocks is moved as if they had always shown what they show now, so that eight o'clock in
the morning is one hour of the week for every model. Of what is forecast, steps after the next change are moved back.
"""

from __future__ import annotations

from datetime import UTC, tzinfo
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vmcellar.analysis.grid import HOUR, seconds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DAY = 86400.0


def by_the_clock(frame: pd.DataFrame, zone: tzinfo, now: float) -> pd.DataFrame:
    """A history up to `now` with its starts moved by `as_now`; the frame itself stays as it is."""
    started = seconds_of(frame["started"])
    moved = as_now(started, zone, now)
    if moved is started:
        return frame
    frame = frame.copy(deep=False)
    frame["started"] = pd.to_datetime(np.rint(moved * 1e6).astype(np.int64), unit="us", utc=True)
    return frame


def as_now(moments: Floats, zone: tzinfo, now: float) -> Floats:
    """Moments before `now` (all in seconds since the epoch) as clocks that never changed would have shown them.

    Order stays: of the hour that a clock shows twice, what lies in the first half is put at its end.
    """
    if zone is UTC or not len(moments):
        return moments
    changes, offsets = _changes(zone, float(moments.min()), now)
    if not len(changes):
        return moments
    place = np.searchsorted(changes, moments, side="right")
    ends = np.append(changes + offsets[1:], np.inf)
    return np.asarray(np.minimum(moments + offsets[place], ends[place]) - offsets[-1], dtype=np.float64)


def as_then(moments: Floats, zone: tzinfo, now: float) -> Floats:
    """The moments that `as_now` moved, as they were."""
    if zone is UTC or not len(moments):
        return moments
    changes, offsets = _changes(zone, float(moments.min()) - DAY, now)
    place = np.searchsorted(changes + offsets[1:], moments + offsets[-1], side="right")
    return np.asarray(moments + offsets[-1] - offsets[place], dtype=np.float64)


def hours_ahead(moments: Floats, zone: tzinfo, now: float) -> Floats:
    """By how many hours the clock will be ahead of what it would be by today's offset, at moments after `now`."""
    if zone is UTC or not len(moments):
        return np.zeros(len(moments))
    changes, offsets = _changes(zone, now, float(moments.max()))
    place = np.searchsorted(changes, moments, side="right")
    return np.asarray((offsets[place] - offsets[0]) / HOUR, dtype=np.float64)


def _changes(zone: tzinfo, first: float, last: float) -> tuple[Floats, Floats]:
    """The moments between two at which the zone's offset to UTC changes (by the hour, as zones do), and the offsets
    (seconds) before, between and after them.
    """
    hours = np.arange(np.floor(first / HOUR), np.ceil(last / HOUR) + 1) * HOUR
    utc = pd.DatetimeIndex(hours.astype("datetime64[s]"), tz="UTC")
    local = utc.tz_convert(zone).tz_localize(None)
    offsets = (local - utc.tz_localize(None)).total_seconds().to_numpy(dtype=np.float64)
    moved = np.flatnonzero(np.diff(offsets)) + 1
    return hours[moved], np.concatenate((offsets[:1], offsets[moved]))
