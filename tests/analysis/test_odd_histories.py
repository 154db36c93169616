"""Whatever a history holds, analyses give numbers or reasons, and do not fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vmcellar.analysis.advise import advise
from vmcellar.analysis.anomalies import find
from vmcellar.analysis.fill import fill_of
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.history import HISTORY, conform
from vmcellar.analysis.intervals import LEVELS
from vmcellar.analysis.judging import Host, Need
from vmcellar.analysis.loads import current_starts, loads_of
from vmcellar.analysis.next_run import next_runs
from vmcellar.analysis.source import sample


def odd_disk(vm: str, disk: str, random: np.random.Generator) -> pd.DataFrame:
    """A disk with few or many runs, even or not, with gaps, failures, fulls, nothing changed, figures unknown."""
    runs = int(random.choice([1, 2, 5, 30, 200, 900]))
    every = random.choice([0.1, 0.25, 1, 2, 5, 12, 24, 48])
    hours = np.cumsum(random.exponential(every, runs) if random.random() < 0.4 else np.full(runs, every))
    changed = (
        random.choice([0, 1e6, 1e12]) * random.random(runs) * (random.random(runs) < random.choice([0, 0.5, 1]))
    ).astype(np.int64)
    frame = pd.DataFrame({name: np.zeros(runs) for name in HISTORY})
    frame["vm"], frame["disk"], frame["tier"] = vm, disk, "hot"
    frame["kind"] = np.where(random.random(runs) < 0.1, "full", "incremental")
    frame["ok"] = random.random(runs) < random.choice([1, 0.9, 0.1])
    frame["run_id"] = [f"{vm}-{number}" for number in range(runs)]
    frame["started"] = pd.Timestamp("2026-01-05", tz="UTC") + pd.to_timedelta(np.round(hours * 3600), unit="s")
    frame["bytes_changed"], frame["bytes_new"], frame["bytes_stored"] = changed, changed // 2, changed // 4
    frame["seconds"] = random.choice([np.nan, 0, 5, 1e5]) * random.random(runs)
    frame["entropy"], frame["seconds_frozen"] = random.choice([np.nan, 8.0]), random.choice([np.nan, 0.0, 0.1])
    return frame


@pytest.mark.parametrize("seed", [0, 47, 90, 108, 113, 3, 4, 5])
def test_odd_histories_give_numbers_or_reasons(seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [odd_disk(f"vm{vm}", disk, random) for vm in range(3) for disk in ("vda", "vdb")]
    frame = conform(pd.concat(parts))
    outlook = forecast_change(frame)
    disks = {(str(vm), str(disk)) for vm, disk in zip(frame["vm"], frame["disk"], strict=True)}
    good = {
        (str(vm), str(disk))
        for vm, disk in zip(*(frame.loc[frame["ok"], name] for name in ("vm", "disk")), strict=True)
    }
    told = {(made.vm, made.disk) for made in outlook.forecasts} | {(none.vm, none.disk) for none in outlook.refusals}
    assert good <= told <= disks
    for one in outlook.forecasts:
        assert np.isfinite([one.middle, one.mean]).all()
        assert all((one.low[level] <= one.high[level]).all() for level in LEVELS)
    for run in next_runs(frame, outlook):
        for figure in (run.changed, run.stored, run.seconds):
            assert figure.low[95] <= figure.high[95]
    assert all(np.isfinite(one.score) for one in find(frame, days=30))
    assert fill_of(frame, "hot", 1.0).used.size in (0, 367)
    current = current_starts(frame, outlook.now)
    needs = [Need(vm, rpo=(None, 3600.0, 86400.0)[int(random.integers(3))]) for vm in current]
    advice = advise(needs, [Host()], loads_of(frame, outlook), current)
    assert [one.vm for one in advice.changes] == list(current)
    assert all(np.isfinite(one.will.seconds) for one in advice.changes)


def test_what_a_differential_run_changed_is_in_no_forecast_and_no_alarm() -> None:
    random = np.random.default_rng(5)
    frame = pd.DataFrame({name: np.zeros(60 * 24) for name in HISTORY})
    frame["vm"], frame["disk"], frame["tier"], frame["ok"] = "web", "vda", "hot", True
    frame["run_id"] = [f"web-{number}" for number in range(len(frame))]
    frame["started"] = pd.Timestamp("2026-01-05", tz="UTC") + pd.to_timedelta(np.arange(len(frame)), unit="h")
    nightly = np.arange(len(frame)) % 24 == 3
    frame["kind"] = np.where(nightly, "differential", "incremental")
    frame["bytes_changed"] = np.where(nightly, 1e10, 1e6 * random.lognormal(0, 0.1, len(frame))).astype(np.int64)
    (made,) = forecast_change(conform(frame)).forecasts
    assert made.middle.max() < 1e7, "an hour's change, not what came since the full"
    assert find(conform(frame), days=7) == []
    (nothing,) = forecast_change(conform(frame.assign(kind="differential"))).refusals
    assert nothing.reason


def test_the_point_at_which_trouble_began_is_none_from_before_it() -> None:
    source = sample()
    vm = str(source.points["vm"].iloc[0])
    moment = pd.Timestamp("2026-11-29 05:28:34.139", tz="UTC")  # between two floats of seconds since the epoch
    offsets = pd.to_timedelta([-60, 0, 60], unit="s")
    points = source.points[source.points["vm"] == vm].tail(3).assign(time=moment.as_unit("ns") + offsets)
    at = float(seconds_of(points["time"])[1])
    assert list(replace(source, points=points).points_before(vm, at)["point"]) == [points["point"].iloc[0]]
