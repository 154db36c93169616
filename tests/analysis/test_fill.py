"""When a tier is full, and what the next run of a VM will be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.analysis_more import alike, score_fill, score_next_runs
from vmcellar.analysis.fill import fill_of
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.history import HISTORY, conform, empty_history
from vmcellar.analysis.next_run import next_runs
from vmcellar.analysis.sample import TUNING, Sample, generate

GB = 10**9


def daily(stored: np.ndarray, tier: str = "hot", kind: str = "incremental") -> pd.DataFrame:
    """A history of a disk that stores so many bytes each day."""
    frame = pd.DataFrame({name: np.zeros(len(stored)) for name in HISTORY})
    frame["vm"], frame["disk"], frame["kind"], frame["tier"], frame["ok"] = "web", "vda", kind, tier, True
    frame["run_id"] = [str(number) for number in range(len(stored))]
    frame["started"] = pd.Timestamp("2026-01-05 02:00", tz="UTC") + pd.to_timedelta(np.arange(len(stored)), unit="D")
    frame["bytes_stored"] = stored
    frame["seconds"] = 10.0
    return conform(frame)


def test_what_is_added_evenly_fills_a_tier_on_the_day_that_division_gives() -> None:
    fill = fill_of(daily(np.full(100, 5 * GB)), "hot", used=500 * GB)
    assert fill.per_day == pytest.approx(5 * GB)
    assert fill.days_to(600 * GB) == pytest.approx(20)
    assert fill.days_to(400 * GB) == 0
    assert fill.days_to(10**15) is None


def test_growth_goes_on() -> None:
    weeks = np.repeat(np.arange(20.0), 7)
    fill = fill_of(daily((10 + weeks) * GB), "hot", used=0)
    assert fill.used[28] == pytest.approx(7 * GB * (30 + 31 + 32 + 33), rel=0.03)


def together(*stored: np.ndarray) -> pd.DataFrame:
    """Disks of VMs of their own, each with a run a day."""
    return conform(pd.concat([daily(one).astype({"vm": "object"}).assign(vm=f"vm{n}") for n, one in enumerate(stored)]))


def noisy(level: np.ndarray, seed: int, noise: float = 0.1) -> np.ndarray:
    return np.asarray(level * GB * np.exp(np.random.default_rng(seed).normal(0, noise, len(level))))


def test_a_step_of_one_disk_is_no_trend_of_the_tier() -> None:
    flat = [noisy(np.full(98, 10.0), seed) for seed in range(3)]
    for before, after in ((10.0, 60.0), (60.0, 10.0)):
        moved = noisy(np.where(np.arange(98) < 74, before, after), 9)
        fill = fill_of(together(*flat, moved), "hot", used=0)
        assert fill.used[30] == pytest.approx(30 * (30 + after) * GB, rel=0.05)


def test_growth_of_one_disk_goes_on_beside_others_that_do_not_grow() -> None:
    flat = [noisy(np.full(140, 10.0), seed) for seed in range(3)]
    grows = 5 * np.exp(0.02 * np.arange(170))
    fill = fill_of(together(*flat, noisy(grows[:140], 9)), "hot", used=0)
    assert fill.used[30] == pytest.approx((30 * 30 + grows[140:].sum()) * GB, rel=0.05)


def test_growth_that_noise_hides_in_each_disk_is_seen_where_all_grow() -> None:
    days = np.arange(140)
    level = np.exp(0.004 * np.arange(170))
    grow = [noisy(10 * level[:140], seed, 0.5) for seed in range(25)]
    fill = fill_of(together(*grow), "hot", used=0)
    steady = fill_of(together(*[one / level[days] for one in grow]), "hot", used=0)
    usual = np.exp(0.5**2 / 2) * GB * 250
    assert fill.used[30] == pytest.approx(usual * level[140:].sum(), rel=0.03)
    assert steady.used[30] == pytest.approx(usual * 30, rel=0.03)


def month_ends(days: int, times: float) -> np.ndarray:
    """A disk that stores so many times as much in the night after a month's last day."""
    first = pd.Timestamp("2026-01-05 02:00", tz="UTC") + pd.to_timedelta(np.arange(days), unit="D")
    return np.where(first.day == 1, times, 1.0) * 10.0


def test_month_ends_are_no_growth_and_come_again() -> None:
    for known in (84, 90, 97, 105, 112):
        level = month_ends(known + 30, 8.0)
        fill = fill_of(together(*[noisy(level[:known], seed) for seed in range(8)]), "hot", used=0)
        assert fill.used[30] == pytest.approx(8 * level[known:].sum() * GB, rel=0.05), known


def test_a_month_that_ends_on_a_working_day_counts_for_that_day_and_not_for_the_saturday_after_it() -> None:
    """Months before it ended on a Saturday, a Tuesday, a Thursday, a Sunday and a Tuesday; days are whole ones."""
    first = pd.Timestamp("2026-02-02 23:50", tz="UTC") + pd.to_timedelta(np.arange(208), unit="D")
    level = np.where(first.weekday < 5, 10.0, 0.5) * np.where(first.is_month_end, 8.0, 1.0)
    known = int((first < pd.Timestamp("2026-07-30", tz="UTC")).sum())
    frame = together(*[noisy(level[:known], seed) for seed in range(8)])
    frame["started"] += first[0] - frame["started"].min()
    fill = fill_of(frame, "hot", used=0, now=pd.Timestamp("2026-07-30", tz="UTC").timestamp())
    assert fill.used[4] == pytest.approx(8 * level[known : known + 4].sum() * GB, rel=0.1)


def test_what_comes_every_other_week_is_no_month_end() -> None:
    level = np.where(np.arange(170) % 14 == 11, 140.0, 0.0)
    fill = fill_of(daily(level[:140] * GB), "hot", used=0)
    assert fill.used[30] < 2 * level[140:].sum() * GB


def test_the_interval_is_as_wide_as_the_tiers_own_past_was_uncertain() -> None:
    calm, wild = (fill_of(daily(noisy(np.full(140, 10.0), 3, noise)), "hot", used=0) for noise in (0.05, 0.8))
    widths = [np.log(fill.high[80][30] / fill.low[80][30]) for fill in (calm, wild)]
    assert widths[1] > 5 * widths[0]
    assert np.all(calm.low[95][1:] < calm.low[80][1:])


def test_a_disk_that_has_gone_adds_nothing() -> None:
    stays, gone = np.full(98, 10.0) * GB, np.full(89, 50.0) * GB
    assert fill_of(together(stays, gone), "hot", used=0).per_day == pytest.approx(10 * GB, rel=0.01)


def test_the_fulls_that_a_history_begins_with_are_not_expected_again() -> None:
    first = daily(np.full(80, 5 * GB)).astype({"vm": "object", "kind": "object"})
    first.loc[0, "kind"], first.loc[0, "bytes_stored"] = "full", 1000 * GB
    second = first.assign(vm="db", started=first["started"] + pd.Timedelta(days=2))
    both = conform(pd.concat([first, second]))
    assert fill_of(both, "hot", used=0).per_day == pytest.approx(10 * GB, rel=0.05)
    later = first.assign(vm="db", started=first["started"] + pd.Timedelta(days=30))
    joined = conform(pd.concat([first, later]))
    assert fill_of(joined, "hot", used=0).per_day > 15 * GB, "one that comes later may be followed by others"


def test_few_forecasts_that_all_missed_to_one_side_leave_the_other_open() -> None:
    fill = fill_of(daily(100 * GB / (1 + np.arange(80.0))), "hot", used=0)
    for level in (80, 95):
        assert fill.low[level][30] < 0.9 * fill.used[30] < 1.1 * fill.used[30] < fill.high[level][30]


def test_what_retention_drops_is_taken_off() -> None:
    fill = fill_of(daily(np.full(100, 5 * GB)), "hot", used=150 * GB, kept_days=30)
    assert np.allclose(fill.used, 150 * GB)
    assert fill.days_to(160 * GB) is None


def test_only_the_tiers_own_runs_count() -> None:
    both = pd.concat([daily(np.full(100, 5 * GB)), daily(np.full(100, 7 * GB), tier="cold")])
    assert fill_of(conform(both), "cold", used=0).per_day == pytest.approx(7 * GB)


def test_a_short_history_is_refused_with_a_reason() -> None:
    fill = fill_of(daily(np.full(20, 5 * GB)), "hot", used=0)
    assert fill.refusal == "19 days of history on hot; 28 are needed"
    assert fill.days_to(10) is None
    assert "0 days of history" in fill_of(empty_history(), "hot", used=0, now=0.0).refusal


def test_the_day_is_within_a_tenth_at_thirty_days() -> None:
    scores = score_fill(replace(TUNING, vms=40, days=160, newcomers=0.0), seeds=6)
    assert (scores["said"] - 30).abs().median() <= 3
    assert scores["within10"].sum() >= 4


def test_size_and_duration_of_the_next_run_are_inside_their_intervals_as_often_as_they_say() -> None:
    scores = score_next_runs(generate(replace(TUNING, seed=5, vms=80, days=130)), cuts=(90, 103, 115, 127))
    assert scores["runs"].min() > 250
    for what in ("changed", "stored", "seconds"):
        assert scores.loc[what, "in80"] == pytest.approx(0.80, abs=0.06)
        assert scores.loc[what, "in95"] == pytest.approx(0.95, abs=0.03)
    assert scores["miss"].to_dict()["seconds"] < 0.2


@pytest.mark.parametrize("change", [lambda sample: sample, alike], ids=["independently", "alike"])
def test_intervals_of_vms_with_two_disks_hold_however_the_disks_change(change: Callable[[Sample], Sample]) -> None:
    sample = change(generate(replace(TUNING, seed=6, vms=200, days=130, every_hours=(6,), newcomers=0.0)))
    scores = score_next_runs(sample, cuts=(80, 90, 103, 115, 127), least_disks=2)
    assert scores["runs"].min() > 150
    assert scores.loc["changed", "in80"] == pytest.approx(0.80, abs=0.08)
    assert scores.loc["changed", "in95"] == pytest.approx(0.95, abs=0.04)


def test_a_vm_whose_disk_has_no_forecast_gets_no_next_run() -> None:
    sample = generate(replace(TUNING, seed=5, vms=5, days=60, newcomers=0.0, leavers=0.0))
    vm = sample.truth["vm"].iloc[-1]
    assert list(sample.truth["disk"][sample.truth["vm"] == vm]) == ["vda", "vdb"]
    frame = sample.frame[~((sample.frame["vm"] == vm) & (sample.frame["disk"] == "vdb"))]
    whole, part = (forecast_change(one) for one in (sample.frame, frame))
    assert vm in {one.vm for one in next_runs(sample.frame, whole)}
    late = sample.frame[
        (sample.frame["disk"] == "vda") | (sample.frame["started"] > sample.start + pd.Timedelta("50D"))
    ]
    refused = forecast_change(late)
    assert {(one.vm, one.disk) for one in refused.refusals} == {(vm, "vdb")}
    assert vm not in {one.vm for one in next_runs(late, refused)}
    assert len(part.forecasts) == len(whole.forecasts) - 1
