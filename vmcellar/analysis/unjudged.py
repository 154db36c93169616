"""Disks of which anomalies say nothing, and why: that nothing strange was found is no comfort where nobody looked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.analysis.forecast import unfit
from vmcellar.analysis.grid import seconds_of, series_of

if TYPE_CHECKING:
    import pandas as pd

    from vmcellar.analysis.grid import Series


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A disk whose newest backups are not judged; `disk` is empty for a VM without one good run."""

    vm: str
    disk: str
    reason: str


def unjudged(frame: pd.DataFrame, now: float | None = None) -> list[Unjudged]:
    """By VM and disk, at `now` (seconds since the epoch; else the last start), by the good rows of a history.

    Those that are backed up too seldom, have too little history or none of late, or are always read in full.
    """
    if frame.empty:
        return []
    moment = float(seconds_of(frame["started"]).max()) if now is None else now
    series = series_of(frame)
    found = [Unjudged(one.vm, one.disk, reason) for one in series if (reason := _reason(one, moment))]
    without = {str(vm) for vm in frame["vm"].unique()} - {one.vm for one in series}
    found += [Unjudged(vm, "", "no good run") for vm in without]
    return sorted(found, key=lambda one: (one.vm, one.disk))


def _reason(one: Series, now: float) -> str:
    if len(one.ends) > 1 and np.isnan(one.changed).all():
        return "never backed up incrementally: what a full reads tells nothing of what changed"
    return unfit(one, now)
