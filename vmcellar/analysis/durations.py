"""Lasting steps of how long runs take: a store that became slower, a host with more to do, a faster network.

Found on logarithms of how much longer each run took than a line through sizes and durations says. What came before the
last step is brought to the level since then, so that it still tells how durations spread and what a byte costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_RUNS = 10
LEAST_BEFORE, LEAST_AFTER = 8, 4
LEAST_STEP = float(np.log(1.1))
STEP_NOISE = 4.0
"""How many times its own error a step must be."""
LEAST_NOISE = 0.02
OUTLIER = 5.0
"""A single run counts as no further off than this many times the usual noise."""
MEDIAN_ERROR = 1.25
"""The standard error of a median by that of a mean."""


def line_of(changed: Floats, seconds: Floats) -> tuple[float, float]:
    """Seconds of a run without change, and seconds per byte; from runs weighted so that ratios count."""
    rows = np.stack([np.ones_like(changed), changed], axis=1) / seconds[:, None]
    (rest, per_byte), *_ = np.linalg.lstsq(rows, np.ones_like(changed), rcond=None)
    if rest <= 0 or per_byte < 0:
        return float(np.median(seconds)), 0.0
    scale = float(np.mean(seconds / (rest + per_byte * changed)))
    return float(rest) * scale, float(per_byte) * scale


def settled(changed: Floats, seconds: Floats) -> tuple[Floats, int]:
    """The seconds of timed runs, oldest first, as they would be at the last level; and how many runs it has lasted."""
    count = len(seconds)
    if count < max(LEAST_RUNS, LEAST_BEFORE + LEAST_AFTER):
        return seconds, count
    rest, per_byte = line_of(changed, seconds)
    logs = np.log(seconds / (rest + per_byte * changed))
    begin = 0
    while step := _step(logs[begin:]):
        place, size = step
        begin += place
        logs[:begin] += size
    return np.asarray(np.exp(logs) * (rest + per_byte * changed), dtype=np.float64), count - begin


def _step(logs: Floats) -> tuple[int, float] | None:
    """Where the clearest step lies, and its size; None when chance would do."""
    count = len(logs)
    if count < LEAST_BEFORE + LEAST_AFTER:
        return None
    noise = max(1.4826 / np.sqrt(2) * float(np.median(np.abs(np.diff(logs)))), LEAST_NOISE)
    middle = float(np.median(logs))
    total = np.cumsum(np.clip(logs, middle - OUTLIER * noise, middle + OUTLIER * noise))
    before = np.arange(LEAST_BEFORE, count - LEAST_AFTER + 1)
    after = count - before
    apart = (total[-1] - total[before - 1]) / after - total[before - 1] / before
    best = int(np.argmax(apart**2 * before * after))
    place = int(before[best])
    size = float(np.median(logs[place:]) - np.median(logs[:place]))
    error = MEDIAN_ERROR * noise * float(np.sqrt(1 / before[best] + 1 / after[best]))
    return (place, size) if abs(size) > max(LEAST_STEP, STEP_NOISE * error) else None
