"""Scenarios on a history of two runs, checked by hand, and on a made-up one."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from tests.analysis.test_plots import drawn
from vmcellar.analysis import plots
from vmcellar.analysis.history import HISTORY, conform
from vmcellar.analysis.whatif import Outcome, Scenario, compare, joined, outcome, past_of
from vmcellar.cli.render.catalog import scenarios_json, scenarios_table
from vmcellar.config.prices import Prices

GB = 1 << 30
NOW = pd.Timestamp("2026-03-31", tz="UTC")
PRICES = {"hot": Prices(gb_month=0.1), "cold": Prices(gb_month=0.01)}


def made(*runs: tuple[str, str, int]) -> pd.DataFrame:
    """Runs of (day, kind, GB stored)."""
    rows = [
        {**dict.fromkeys(HISTORY, 0), "run_id": day, "vm": "web", "disk": "vda", "kind": kind, "ok": True,
         "started": pd.Timestamp(day, tz="UTC"), "bytes_stored": size * GB, "tier": "hot"}
        for day, kind, size in runs
    ]  # fmt: skip
    return conform(pd.DataFrame(rows))


FRAME = made(("2026-01-30", "full", 100), ("2026-03-11", "incremental", 10), ("2026-03-21", "incremental", 20))


def what_if(frame: pd.DataFrame, scenario: Scenario, prices: dict[str, Prices], now: pd.Timestamp) -> Outcome:
    return outcome(past_of(frame, now), scenario, prices)


def test_what_a_dropped_point_brought_goes_and_a_full_stays() -> None:
    keep = what_if(FRAME, Scenario("keep", 365), PRICES, NOW)
    assert keep.held == {"hot": 130 * GB}
    assert keep.bill.storage == pytest.approx(0.1 * (100 + 10 * 20 / 30 + 20 * 10 / 30)), "days of March of each"
    short = what_if(FRAME, Scenario("15 days", 15), PRICES, NOW)
    assert short.held == {"hot": 120 * GB}
    assert (short.stored, short.runs) == (30 * GB, 2)


def test_a_differential_point_goes_in_its_time_as_an_incremental_one() -> None:
    frame = made(("2026-01-30", "full", 100), ("2026-03-11", "differential", 10), ("2026-03-21", "differential", 20))
    assert what_if(frame, Scenario("15 days", 15), PRICES, NOW).held == {"hot": 120 * GB}


def test_bytes_move_with_their_age_and_cost_what_the_tier_costs() -> None:
    moved = what_if(FRAME, Scenario("cold", 365, (("hot", 0), ("cold", 15))), PRICES, NOW)
    assert moved.held == {"hot": 20 * GB, "cold": 110 * GB}
    in_hot, in_cold = 0.1 * (10 * 15 + 20 * 10) / 30, 0.01 * (100 * 30 + 10 * 5) / 30
    assert moved.bill.storage == pytest.approx(in_hot + in_cold)


def test_half_as_often_is_half_the_runs_and_twice_the_interval() -> None:
    half = what_if(FRAME, Scenario("half", 365, every=2), PRICES, NOW)
    assert (half.runs, half.interval) == (1, 2 * 25 * 86400)
    table = compare([half])
    assert (table.loc[0, "scenario"], table.loc[0, "on hot"]) == ("half", 130 * GB)
    assert "bill" in drawn(plots.scenarios([half]))


def test_a_run_takes_as_long_as_it_took_or_longer_where_less_may_be_read_a_second() -> None:
    took, read = [3600.0, 600.0, 1200.0], [100 * GB, 10 * GB, 20 * GB]
    frame = FRAME.assign(seconds=took, bytes_read=read)
    free = what_if(frame, Scenario("free", 365), PRICES, NOW)
    assert (free.busy, free.longest, free.late) == (1800.0, 1200.0, 0), "the full is older than 30 days"
    gentle = what_if(frame, Scenario("as fast as it was", 365, rate=GB), PRICES, NOW)
    assert (gentle.busy, gentle.longest) == (1800.0, 1200.0), "no limit makes it faster"
    slow = what_if(frame, Scenario("slow", 365, rate=10 * GB / (11 * 86400)), PRICES, NOW)
    assert slow.busy == pytest.approx(33 * 86400)
    assert slow.longest == pytest.approx(22 * 86400)
    assert slow.late == 1, "eleven days of work, and the next is due after ten; nobody knows what follows the last"
    half = what_if(frame, Scenario("slow, half as often", 365, every=2, rate=10 * GB / (11 * 86400)), PRICES, NOW)
    assert half.busy == pytest.approx(33 * 86400)
    assert half.longest == pytest.approx(44 * 86400)
    assert "late" in drawn(plots.scenarios([free, slow]))
    assert scenarios_json([slow])[0]["late"] == 1


def test_what_lies_before_the_history_is_held_and_goes_in_its_time() -> None:
    days = pd.to_datetime(["2026-01-30", "2026-03-11"], utc=True)
    older = pd.DataFrame({"vm": "web", "day": days[:1], "goes": False, "size": 100.0 * GB})
    for keep in (365, 15):
        whole = what_if(FRAME, Scenario("", keep), PRICES, NOW)
        parted = outcome(past_of(FRAME[1:], NOW, older), Scenario("", keep), PRICES)
        assert (parted.held, parted.bill, parted.runs) == (whole.held, whole.bill, whole.runs)
    goes = pd.DataFrame({"vm": "web", "day": days, "goes": True, "size": 7.0 * GB})
    assert outcome(past_of(FRAME[2:], NOW, goes), Scenario("", 25), PRICES).held == {"hot": 27 * GB}


def test_a_single_run_has_no_interval() -> None:
    once = what_if(FRAME[:1], Scenario("once", 365), PRICES, NOW)
    assert math.isnan(once.interval)
    assert scenarios_json([once])[0]["interval"] is None
    assert scenarios_table([once]).row_count == 1


def test_a_tier_without_prices_is_an_error() -> None:
    with pytest.raises(KeyError, match="warm"):
        what_if(FRAME, Scenario("warm", 9, (("warm", 0),)), PRICES, NOW)


def test_a_past_of_some_vms_after_the_others_is_that_of_all() -> None:
    other = FRAME.assign(vm="other", run_id="other-" + FRAME["run_id"].astype(str))
    both = pd.concat([FRAME, other.iloc[::2]], ignore_index=True)
    parts = [past_of(frame, NOW) for frame in (FRAME, other.iloc[::2])]
    scenario = Scenario("", 15, (("hot", 0), ("cold", 5)), every=2, rate=1e6)
    assert outcome(joined(parts), scenario, PRICES) == outcome(past_of(both, NOW), scenario, PRICES)
