"""The forecasts beside those of statsforecast, on the same daily series, origins and figure.

Run it as `python -m bench.analysis_rivals`.
The rivals get what they need: no gaps (filled from the week before), and a season of seven days. They choose no model
per series and give no reasons; that is what is compared, together with the time they take.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from statsforecast.models import AutoETS, DynamicOptimizedTheta

from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.grid import HOUR, grids, series_of, spread
from vmcellar.analysis.models import seasonal_naive
from vmcellar.analysis.sample import HOLDOUT, generate

Floats = NDArray[np.float64]
CUT = 150
WEEK = 7


def filled(values: Floats) -> Floats:
    """Gaps taken from the week before; what is before the first value is dropped."""
    values = values[np.flatnonzero(np.isfinite(values))[0] :].copy()
    for index in np.flatnonzero(np.isnan(values)):
        values[index] = values[index - WEEK] if index >= WEEK else np.nanmedian(values)
    return values


def timed(name: str, forecast: Callable[[Floats], Floats], series: list[tuple[Floats, Floats]]) -> None:
    """Print the geometric mean of the error by the baseline's."""
    begun = time.monotonic()
    ratios = []
    for past, truth in series:
        naive = seasonal_naive(past[None, :], WEEK, WEEK)[0]
        known = np.isfinite(truth) & np.isfinite(naive)
        base = np.abs(naive - truth)[known].mean()
        ratios.append(np.abs(forecast(past) - truth)[known].mean() / base)
    took = time.monotonic() - begun
    print(f"{name:24s} MASE {np.exp(np.mean(np.log(ratios))):.3f}   {took:6.2f} s for {len(series)} series")


def main() -> int:
    """Daily series of held-out samples, one cut."""
    sample = generate(replace(HOLDOUT, vms=60, days=170, every_hours=(24,), newcomers=0.0, leavers=0.0))
    now = sample.start.timestamp() + CUT * 86400
    later = {(one.vm, one.disk): one for one in series_of(sample.frame)}
    known = sample.frame[sample.frame["started"].map(lambda moment: moment.timestamp()) <= now]
    (grid,) = grids(series_of(known), now)
    begun = time.monotonic()
    made = {(one.vm, one.disk): one for one in forecast_change(known, now).forecasts}
    took = time.monotonic() - begun
    pairs, own = [], {}
    for row, one in enumerate(grid.series):
        found = made.get((one.vm, one.disk))
        truth = spread(later[one.vm, one.disk], float(grid.ends[row]) + WEEK * 24 * HOUR, 24, WEEK)
        if found is not None and np.isfinite(truth).all():
            past = filled(grid.values[row])
            pairs.append((past, truth))
            own[id(past)] = found.middle[:WEEK]
    timed("vmcellar", lambda past: own[id(past)], pairs)
    print(f"  of which the forecast with backtest and intervals took {took:.2f} s")
    timed("statsforecast Theta", lambda past: DynamicOptimizedTheta(WEEK).forecast(past, h=WEEK)["mean"], pairs)
    timed("statsforecast AutoETS", lambda past: AutoETS(season_length=WEEK).forecast(past, h=WEEK)["mean"], pairs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
