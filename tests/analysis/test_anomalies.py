"""What is found, how soon, and how seldom the alarm is false."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.analysis_anomalies import Detection, score_anomalies
from vmcellar.analysis.anomalies import KINDS, find
from vmcellar.analysis.history import empty_history
from vmcellar.analysis.sample import TUNING, Sample, generate

DAYS = 100


@pytest.fixture(scope="module")
def watched() -> Detection:
    return score_anomalies(generate(replace(TUNING, seed=21, vms=110, days=DAYS, trouble_share=0.8)), DAYS)


@pytest.fixture(scope="module")
def quiet() -> Sample:
    settings = replace(TUNING, seed=22, vms=18, days=DAYS, newcomers=0.0, leavers=0.0, outage_share=0.0)
    return generate(replace(settings, classes=("office", "idle", "flat"), every_hours=(1,)))


def test_ransomware_is_found_within_two_backups(watched: Detection) -> None:
    assert (watched.troubles["trouble"] == "ransomware").sum() >= 15
    assert watched.found("ransomware", backups=2) >= 0.99


def test_a_stuck_bitmap_is_found_within_a_day_and_a_run(watched: Detection) -> None:
    assert (watched.troubles["trouble"] == "stuck").sum() >= 10
    assert watched.found("stuck", hours=26) == 1.0


def test_long_freezes_and_slow_stages_are_found(watched: Detection) -> None:
    assert watched.found("freeze", backups=2) >= 0.9
    assert watched.found("slow", hours=97) >= 0.9


def test_false_alarms_are_under_one_per_vm_and_year(watched: Detection) -> None:
    assert watched.years > 15
    assert watched.alarms["ransomware"] < 0.2
    assert sum(watched.alarms.values()) < 1.0


def test_a_quiet_history_has_no_anomaly(quiet: Sample) -> None:
    assert find(quiet.frame, days=14) == []


def last_runs(frame: pd.DataFrame, vm: str, count: int) -> pd.Index:
    return frame.index[frame["vm"] == vm][-count:]


def test_a_vm_that_sleeps_at_night_is_not_stuck_but_in_the_morning_it_is(quiet: Sample) -> None:
    frame = quiet.frame.copy()
    vm = quiet.truth.loc[quiet.truth["class"] == "idle", "vm"].iloc[0]
    frame.loc[last_runs(frame, vm, 72), ["bytes_changed", "bytes_new", "bytes_zero", "bytes_stored"]] = 0
    (one,) = find(frame, days=14)
    assert (one.vm, one.kind) == (vm, "stuck")
    assert "nothing changed" in one.text


def test_more_of_the_same_data_is_no_ransomware(quiet: Sample) -> None:
    frame = quiet.frame.copy()
    vm = quiet.truth["vm"].iloc[0]
    rows = last_runs(frame, vm, 5)
    for name in ("bytes_changed", "bytes_new", "bytes_zero", "bytes_stored"):
        frame.loc[rows, name] = frame.loc[rows, name] * 60
    assert {(one.vm, one.kind) for one in find(frame, days=14)} == {(vm, "change")}


def test_growth_is_seen_once_it_lasts(quiet: Sample) -> None:
    frame = quiet.frame.copy()
    vm = quiet.truth.loc[quiet.truth["class"] == "flat", "vm"].iloc[0]
    rows = last_runs(frame, vm, 24 * 12)
    frame.loc[rows, "bytes_changed"] = frame.loc[rows, "bytes_changed"] * 4
    (one,) = [one for one in find(frame, days=14) if one.kind == "growth"]
    assert one.vm == vm
    assert "times what it was, for 12 days" in one.text


def test_what_comes_later_changes_nothing(quiet: Sample) -> None:
    now = quiet.start.timestamp() + 70 * 86400.0
    frame = quiet.frame.copy()
    vm = quiet.truth["vm"].iloc[0]
    rows = frame.index[(frame["vm"] == vm) & (frame["started"] > pd.Timestamp(now - 5 * 3600, unit="s", tz="UTC"))][:5]
    frame.loc[rows, "seconds_frozen"] = 30.0
    cut = frame[frame["started"] <= pd.Timestamp(now, unit="s", tz="UTC")]
    assert [one.kind for one in find(frame, now)] == ["freeze"]
    assert find(cut, now) == find(frame, now)


def test_an_empty_or_a_short_history_has_no_anomaly(quiet: Sample) -> None:
    assert find(empty_history()) == []
    assert find(quiet.frame.iloc[:1]) == []
    young = quiet.frame[quiet.frame["started"] < quiet.start + pd.Timedelta("5D")]
    assert find(young) == []
    assert set(KINDS) >= {"ransomware", "stuck"}
    assert np.isfinite(young["seconds"]).all()
