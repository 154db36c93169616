"""The scenarios that every look at a history shows: one change of today's settings at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backup.world import make_engine
from tests.repository.writing import back_up
from vmcellar.analysis.history import empty_history
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.analysis.wondering import half_the_speed, outcomes

MIB = 1 << 20
DAY = 86400.0


def test_today_is_held_against_one_change_at_a_time(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    frame = generate(replace(TUNING, seed=3, vms=2, days=40, newcomers=0.0, leavers=0.0)).frame
    now = frame["started"].max().timestamp()
    with ThreadPoolExecutor(2) as pool:
        back_up(engine.repository, pool, [(0, b"1" * MIB)], 8 * MIB, vm="web", time=now - 16 * DAY)
    tiers = {
        "hot": {"storage": str(tmp_path / "hot"), "prices": {"gb_month": 0.1}},
        "cold": {"storage": str(tmp_path / "cold"), "prices": {"gb_month": 0.001}},
    }
    document = {**engine.config.model_dump(mode="json", include={"state", "scratch"}), "tiers": tiers}
    found = outcomes(engine.repository, type(engine.config).model_validate(document), frame, now)
    engine.repository.close()
    today, half, twice, seldom, slow, cheap = found
    names = ("as now: 16 days, hot", "kept for 8 days", "kept for 32 days", "half as often", "hot, cold from 7 d")
    assert tuple(one.scenario.name for one in (today, half, twice, seldom, cheap)) == names
    assert slow.scenario.name.startswith("bandwidth ")
    assert half.total < today.total < twice.total
    assert seldom.runs == pytest.approx(today.runs / 2, abs=1)
    assert slow.busy > today.busy
    assert cheap.bill.total < today.bill.total


def test_nothing_comes_of_no_history(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    assert outcomes(engine.repository, engine.config, empty_history(), 1e9) == []
    engine.repository.close()


def test_a_speed_is_that_of_whole_runs() -> None:
    frame = generate(replace(TUNING, seed=3, vms=2, days=3)).frame
    disks = frame.assign(run_id="one", bytes_read=0, seconds=2.0).head(2)
    assert half_the_speed(disks) is None
    assert half_the_speed(disks.assign(bytes_read=20 * MIB)) == 10 * MIB
