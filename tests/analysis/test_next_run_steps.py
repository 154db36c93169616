"""Durations that step up or down for good: the next run's interval follows within some runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vmcellar.analysis.durations import as_of_late, followed
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.intervals import bounds_of_one_by_one
from vmcellar.analysis.loads import loads_of
from vmcellar.analysis.next_run import next_runs, runs_of
from vmcellar.analysis.sample import TUNING, generate

PACED = replace(TUNING, seed=5, vms=60, days=100, every_hours=(6,), paced=1.0, newcomers=0.0, leavers=0.0)


def noise(seed: int, count: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, count)


@pytest.mark.parametrize("size", [0.5, -0.5])
@pytest.mark.parametrize("since", [8, 20])
def test_the_level_is_that_of_after_a_step(size: float, since: int) -> None:
    logs = noise(1) + np.where(np.arange(60) < 60 - since, 0.0, size)
    level, missed = followed(logs)
    assert level == pytest.approx(size, abs=0.1)
    assert np.median(np.abs(missed)) < 0.12, "few runs were missed by the whole step"


def test_without_a_step_many_runs_are_the_level() -> None:
    levels = [followed(noise(seed))[0] for seed in range(300)]
    assert np.std(levels) < 0.035, "the median of five would spread by 0.053"
    level, missed = followed(noise(1, 12))
    assert level == pytest.approx(np.median(noise(1, 12)))
    assert len(missed) == 12


def test_the_errors_of_what_wanders_are_as_large_as_they_come() -> None:
    held = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        logs = np.cumsum(random.normal(0, 0.05, 61)) + random.normal(0, 0.1, 61)
        level, missed = followed(logs[:60])
        held.append(abs(logs[60] - level) <= np.quantile(np.abs(missed), 0.8))
    assert np.mean(held) == pytest.approx(0.8, abs=0.06)


def inside(since: int, cases: int = 400) -> float:
    """Share of runs inside 80 % that come so many runs after one that began a step (0: without a step)."""
    held = []
    for seed in range(cases):
        logs = noise(seed, 61) + np.where(np.arange(61) < 60 - since, 0.0, 0.4 * (since > 0))
        level, missed = followed(logs[:60])
        low, high = bounds_of_one_by_one(as_of_late(missed), 80)
        held.append(low <= logs[60] - level <= high)
    return float(np.mean(held))


def test_the_interval_is_wide_right_after_a_step_and_as_ever_without_one() -> None:
    assert inside(0) == pytest.approx(0.8, abs=0.05)
    assert [inside(since) > least for since, least in ((2, 0.55), (3, 0.75), (6, 0.75))] == [True] * 3


def test_misses_are_as_large_as_of_late_and_of_no_other_shape() -> None:
    calm = np.tile([0.1, -0.1], 30)
    assert as_of_late(calm) == pytest.approx(calm)
    wild = as_of_late(np.append(calm, [0.5, 0.5]))
    assert np.all(np.sign(wild[:60]) == np.sign(calm))
    assert np.median(np.abs(wild)) == pytest.approx(0.1 + 0.4 * (1 - 0.8**2), rel=0.05)
    assert as_of_late(np.zeros(12)) == pytest.approx(np.zeros(12))
    assert len(as_of_late(np.zeros(0))) == 0


def test_the_interval_holds_some_runs_after_a_step() -> None:
    sample = generate(replace(PACED, pace=(1.6, 2.0)))
    truth = sample.truth[sample.truth["disk"] == "vda"]
    inside = []
    for vm, hour in zip(truth["vm"], truth["pace_hour"], strict=True):
        now = sample.start.timestamp() + (hour + 72) * 3600
        frame = sample.frame[sample.frame["vm"] == vm]
        later = frame[(seconds_of(frame["started"]) > now) & frame["ok"]].head(1)
        inside += [
            one.seconds.low[95] <= came <= one.seconds.high[95]
            for one in next_runs(frame, forecast_change(frame, now))
            for came in later["seconds"]
        ]
    assert len(inside) > 30
    assert np.mean(inside) > 0.8


def test_advice_counts_with_the_durations_of_late() -> None:
    sample = generate(replace(PACED, vms=1, pace=(2.0, 2.0), paced=0.0, every_hours=(6,)))
    frame = sample.frame.copy()
    now = frame["started"].max().timestamp()
    before = loads_of(frame, forecast_change(frame, now))
    late = seconds_of(frame["started"]) > now - 5 * 86400
    frame.loc[late, "seconds"] *= 2
    after = loads_of(frame, forecast_change(frame, now))
    (vm,) = before
    assert after[vm].day_seconds(4) == pytest.approx(2 * before[vm].day_seconds(4), rel=0.2)


def test_a_vm_whose_durations_are_not_known_has_none() -> None:
    frame = generate(replace(PACED, vms=1, days=30)).frame.assign(seconds=0.0)
    (one,) = runs_of(frame, frame["started"].max().timestamp())
    assert len(one.off_line()) == 0
