"""Intervals from past errors hold as often as they say, however few errors there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.intervals import LEVELS, bounds_of_one_by_one
from vmcellar.analysis.next_run import next_runs, runs_of
from vmcellar.analysis.sample import TUNING, generate

Draw = Callable[[np.random.Generator, int], np.ndarray]
DRAWS: dict[str, Draw] = {
    "normal": lambda random, count: random.normal(3, 1, count),
    "heavy tails": lambda random, count: random.standard_t(4, count),
    "to one side": lambda random, count: np.exp(random.normal(0, 0.6, count)),
}


@pytest.mark.parametrize("count", [10, 20, 38, 60])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))
def test_the_next_error_is_inside_as_often_as_it_says(draw: Draw, count: int) -> None:
    random = np.random.default_rng(1)
    for level, off in ((80, 0.015), (95, 0.025)):
        inside = []
        for _ in range(4000):
            *seen, coming = draw(random, count + 1)
            low, high = bounds_of_one_by_one(np.array(seen), level)
            inside.append(low <= coming <= high)
        assert np.mean(inside) == pytest.approx(level / 100, abs=off)


def test_one_error_is_all_that_is_known() -> None:
    assert bounds_of_one_by_one(np.array([0.5]), 80) == (0.5, 0.5)


def test_durations_without_noise_are_those_of_the_changes_at_both_ends() -> None:
    frame = generate(replace(TUNING, vms=9, days=60, classes=("bursty",), every_hours=(6,), newcomers=0.0)).frame
    changed = frame.groupby("run_id", observed=True)["bytes_changed"].transform("sum")
    frame["seconds"] = 6 + changed / 50e6
    found = [one for one in next_runs(frame, forecast_change(frame)) if one.changed.low[80] > 0]
    assert max(one.changed.high[80] / one.changed.middle for one in found) > 5
    for one in found:
        for level in LEVELS:
            for mine, change in ((one.seconds.low, one.changed.low), (one.seconds.high, one.changed.high)):
                assert mine[level] == pytest.approx(6 + change[level] / 50e6, rel=0.02)
    assert len(found) >= len(list(runs_of(frame, frame["started"].max().timestamp()))) / 2
