"""How long runs take: a line through sizes and durations, at the level of late, and how far it was off so far.

A store that became slower, or a host with more to do, lifts all durations for good; other things lift them for some
runs. So the level is the median of how far the last few, or the last many, runs were off the line: as many as would
have served best on the same runs, each foretold from those before it. These errors, as large as they are of late, are
what an interval is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_RUNS = 10
WINDOWS = (30, 12, 5)
"""How many of the last runs the level may come from."""
MARGIN = 0.97
"""Fewer runs are taken where their error is below that of more by this factor."""


def line_of(changed: Floats, seconds: Floats) -> tuple[float, float]:
    """Seconds of a run without change, and seconds per byte; from runs weighted so that ratios count."""
    rows = np.stack([np.ones_like(changed), changed], axis=1) / seconds[:, None]
    (rest, per_byte), *_ = np.linalg.lstsq(rows, np.ones_like(changed), rcond=None)
    if rest <= 0 or per_byte < 0:
        return float(np.median(seconds)), 0.0
    scale = float(np.mean(seconds / (rest + per_byte * changed)))
    return float(rest) * scale, float(per_byte) * scale


def followed(logs: Floats) -> tuple[float, Floats]:
    """The level of late of logarithms, oldest first, and by how much each was missed by the level before it.

    With too few of them to test that, the median of all, and how far each is from it.
    """
    middle = float(np.median(logs))
    best: tuple[float, Floats] = (middle, logs - middle)
    least = np.inf
    for count in WINDOWS:
        if len(logs) < count + LEAST_RUNS:
            continue
        medians = np.median(np.lib.stride_tricks.sliding_window_view(logs, count), axis=1)
        missed = logs[count:] - medians[:-1]
        error = float(np.abs(missed[-(len(logs) - _longest(len(logs))) :]).mean())
        if error < MARGIN * least:
            best, least = (float(medians[-1]), missed), error
    return best


def as_of_late(missed: Floats) -> Floats:
    """The same misses, oldest first, as large as they would be now: each by the size that misses had right before it,
    times the size that they have now. So an interval made of them is wide while the level moves, within two runs or
    three of a step, and narrow again later.

    Source: Papadopoulos, Gammerman, Vovk 2008, "Normalized Nonconformity Measures for Regression Conformal Prediction".
    """
    size = float(np.abs(missed).mean()) if len(missed) else 0.0
    sizes = np.empty(len(missed))
    for place, each in enumerate(np.abs(missed)):
        sizes[place] = size
        size += (each - size) / WINDOWS[-1]
    return np.asarray(np.where(sizes > 0, missed * size / np.maximum(sizes, 1e-12), missed), dtype=np.float64)


def _longest(count: int) -> int:
    """The longest window that so many logarithms can be tested with."""
    return next(window for window in WINDOWS if count >= window + LEAST_RUNS)
