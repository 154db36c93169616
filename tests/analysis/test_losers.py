"""No series is forecast worse than by last week's value by more than noise; and the test of that finds one that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.analysis_losers import chance_of, holm, series_of_weeks, weeks_of
from vmcellar.analysis.sample import TUNING

WEEKS = 26


@pytest.fixture(scope="module")
def weeks() -> pd.DataFrame:
    return weeks_of(replace(TUNING, seed=12, vms=36, days=200), range(89, 187, 7))


def test_no_series_loses_by_more_than_noise(weeks: pd.DataFrame) -> None:
    series = series_of_weeks(weeks)
    assert len(series) > 30
    assert not series["loser"].any()
    assert (series["ratio"] > 1).mean() < 0.03


def test_single_weeks_are_lost_hardly_more_often_than_by_who_knows_all_but_the_noise(weeks: pd.DataFrame) -> None:
    lost, chance = ((weeks[name] > weeks["naive"]).mean() for name in ("model", "truth"))
    assert lost < chance + 0.05


def test_a_series_that_is_forecast_worse_is_found(weeks: pd.DataFrame) -> None:
    one = weeks["vm"] == weeks["vm"].iloc[0]
    spoilt = weeks.assign(model=weeks["model"].where(~one, 1.6 * weeks["naive"]))
    found = series_of_weeks(spoilt)
    assert set(found.loc[found["loser"], "vm"]) == {weeks["vm"].iloc[0]}


@pytest.mark.parametrize("memory", [0.0, 0.5], ids=["alone", "with the week before"])
def test_noise_is_called_a_loss_as_often_as_it_says(memory: float) -> None:
    random = np.random.default_rng(2)
    raw = random.normal(size=(4000, WEEKS + 1))
    lost = raw[:, 1:] + memory * raw[:, :-1]
    found = np.mean([chance_of(each) < 0.05 for each in lost])
    assert 0.03 < found < 0.07


def test_of_many_chances_those_count_that_stand_out_of_all() -> None:
    assert holm(np.array([0.04, 0.0001, 0.03, 0.02])).tolist() == [False, True, False, False]
    assert not holm(np.array([0.04, 0.03])).any()
