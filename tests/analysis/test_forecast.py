"""What forecasts promise: better than last week's value, intervals that hold, and a reason where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.analysis_forecast import Score, score_forecasts
from vmcellar.analysis.forecast import Forecast, Outlook, forecast_change
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.history import HISTORY, conform, empty_history
from vmcellar.analysis.models import BASELINE
from vmcellar.analysis.sample import SEASONAL, TUNING, Sample, generate

DAY = 86400.0
START = pd.Timestamp("2026-01-05", tz="UTC")


def history(hours: np.ndarray, changed: np.ndarray, vm: str = "web", ok: np.ndarray | None = None) -> pd.DataFrame:
    """A history of one disk, incremental runs at `hours` from the start."""
    count = len(hours)
    frame = pd.DataFrame({name: np.zeros(count) for name in HISTORY})
    frame["vm"], frame["disk"], frame["kind"], frame["tier"] = vm, "vda", "incremental", "hot"
    frame["run_id"] = [f"{vm}-{number}" for number in range(count)]
    frame["started"] = START + pd.to_timedelta(hours, unit="h")
    frame["ok"] = True if ok is None else ok
    frame["bytes_changed"] = changed
    return conform(frame)


def weekly(hours: np.ndarray) -> np.ndarray:
    """A week's shape in bytes per hour."""
    return np.asarray(1e8 + 9e8 * (((hours % 24) // 8 == 1) & (hours // 24 % 7 < 5)), dtype=np.float64)


def only(outlook: Outlook) -> Forecast:
    assert outlook.refusals == ()
    (one,) = outlook.forecasts
    return one


@pytest.fixture(scope="module")
def sample() -> Sample:
    return generate(replace(TUNING, seed=11, vms=48, days=130))


@pytest.fixture(scope="module")
def score(sample: Sample) -> Score:
    return score_forecasts(sample, cuts=(105, 115))


@pytest.mark.parametrize("kind", SEASONAL)
def test_a_season_is_forecast_better_than_by_last_weeks_value(score: Score, kind: str) -> None:
    assert score.mase(kind) < 0.9
    assert score.worst(kind) < 1.3


def test_disks_without_a_season_are_not_forecast_worse_than_by_last_weeks_value(score: Score) -> None:
    assert score.mase("flat") < 0.9
    assert score.mase("bursty") < 1.0


@pytest.mark.parametrize("level", [80, 95])
def test_intervals_hold_as_often_as_they_say(score: Score, level: int) -> None:
    assert abs(score.coverage(level) - level / 100) < 0.03


@pytest.mark.parametrize("cuts", [(25, 28), (35, 42)], ids=["four", "five and six"])
@pytest.mark.parametrize("level", [80, 95])
def test_intervals_hold_as_often_as_they_say_after_some_weeks(level: int, cuts: tuple[int, ...]) -> None:
    """The few past forecasts were made from less than is known now, so they missed by more than this one will."""
    young = generate(replace(TUNING, vms=120, days=60, newcomers=0.0, leavers=0.0))
    assert abs(score_forecasts(young, cuts).coverage(level) - level / 100) < 0.03


def test_what_repeats_exactly_keeps_the_baseline_and_says_so() -> None:
    hours = np.arange(0, 24 * 7 * 8, 1.0)
    one = only(forecast_change(history(hours, weekly(hours))))
    assert one.model == BASELINE
    assert one.mase == 1.0
    assert "baseline" in one.note
    ahead = (one.starts - START.timestamp()) / 3600 + 1
    assert np.allclose(one.middle, weekly(ahead), rtol=1e-6)


def test_daily_runs_are_forecast_by_the_day_at_the_hour_of_the_run() -> None:
    hours = np.arange(2, 24 * 7 * 8, 24.0)
    one = only(forecast_change(history(hours, 1e9 + 5e8 * (hours // 24 % 7 < 5))))
    assert one.step == 24
    assert one.starts[0] == START.timestamp() + hours[-1] * 3600
    assert one.expected(one.starts[0], one.starts[0] + 7 * DAY) == pytest.approx(7e9 + 5 * 5e8, rel=0.02)


def test_failed_and_full_runs_say_nothing_and_spoil_nothing() -> None:
    hours = np.arange(0, 24 * 7 * 8, 1.0)
    changed = weekly(hours)
    ok = np.ones(len(hours), bool)
    ok[600:610] = False
    carried = changed.copy()
    carried[610] = changed[600:611].sum()
    frame = history(hours, np.where(ok, carried, 0), ok=ok)
    frame["kind"] = frame["kind"].cat.add_categories("full")
    frame.loc[700, "kind"] = "full"
    frame.loc[700, "bytes_changed"] = 10**13
    one = only(forecast_change(frame))
    ahead = (one.starts - START.timestamp()) / 3600 + 1
    assert np.allclose(one.middle, weekly(ahead), rtol=0.05)


def test_after_a_lasting_shift_the_new_level_counts() -> None:
    random = np.random.default_rng(3)
    hours = np.arange(0, 24 * 7 * 12, 1.0)
    level = np.where(hours > 24 * 7 * 8, 5.0, 1.0) * np.exp(random.normal(0, 0.2, len(hours)))
    one = only(forecast_change(history(hours, weekly(hours) * level)))
    assert 26 <= one.shift_days <= 30
    assert one.mean.sum() == pytest.approx(5 * weekly(hours[:336]).sum(), rel=0.15)


def test_month_ends_are_foreseen() -> None:
    random = np.random.default_rng(4)
    hours = np.arange(0, 24 * 144, 1.0)
    days = START + pd.to_timedelta(hours - 1, unit="h")
    changed = 1e8 * np.where(days.is_month_end, 6.0, 1.0) * np.exp(random.normal(0, 0.2, len(hours)))
    one = only(forecast_change(history(hours, changed)))
    last_day = pd.Timestamp("2026-05-31 00:00", tz="UTC").timestamp()
    assert one.expected(last_day, last_day + DAY) == pytest.approx(24 * 6e8, rel=0.2)
    assert one.expected(last_day - DAY, last_day) == pytest.approx(24 * 1e8, rel=0.2)


def reasons(frame: pd.DataFrame, now: float | None = None) -> list[str]:
    outlook = forecast_change(frame, now)
    assert outlook.forecasts == ()
    return [refusal.reason for refusal in outlook.refusals]


def test_too_short_a_history_is_refused() -> None:
    hours = np.arange(0, 24 * 15, 1.0)
    assert reasons(history(hours, weekly(hours))) == ["15.0 days of history; 3 weeks are needed"]


def test_a_vm_that_is_gone_is_refused() -> None:
    hours = np.arange(0, 24 * 60, 1.0)
    now = START.timestamp() + 61 * DAY
    assert reasons(history(hours, weekly(hours)), now) == [
        "no good run for 25 hours, though usual is every 1.0: gone or broken"
    ]


def test_too_broken_a_history_is_refused() -> None:
    hours = np.arange(0, 24 * 60, 1.0)
    hours = hours[(hours < 24 * 30) | (hours > 24 * 56)]
    assert reasons(history(hours, weekly(hours))) == ["only 14% of the last four weeks are known"]


def test_weekly_backups_are_refused() -> None:
    hours = np.arange(0, 24 * 180, 168.0)
    assert reasons(history(hours, hours)) == ["backed up every 168 hours; a daily backup at least is needed"]


def test_nothing_comes_of_nothing() -> None:
    assert forecast_change(empty_history()) == Outlook(0.0, (), ())


def test_what_comes_later_does_not_change_a_forecast(sample: Sample) -> None:
    now = sample.start.timestamp() + 100 * DAY
    seen = sample.frame[sample.frame["started"] <= pd.Timestamp(now, unit="s", tz="UTC")]
    whole, cut = forecast_change(sample.frame, now), forecast_change(seen, now)
    assert seconds_of(sample.frame["started"]).max() > now
    for one, other in zip(whole.forecasts, cut.forecasts, strict=True):
        assert np.array_equal(one.middle, other.middle)
