"""What a configuration's tiers allow and cost: rates by the local clock, moves, room by forecast, retention, prices."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from vmcellar.analysis import adapting, cellar_bounds
from vmcellar.analysis.cellar_bounds import Bounds, Cellar, kept_by
from vmcellar.analysis.fill import fill_of
from vmcellar.analysis.history import empty_history
from vmcellar.analysis.judging import Kept, Need
from vmcellar.analysis.sample import TUNING, Sample, generate
from vmcellar.analysis.spending import HORIZON, RUN_BYTES
from vmcellar.config.jobs import BackupJob
from vmcellar.config.model import Config

MIB, DAY = 1 << 20, 86400.0
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()
WEB = Need("web", kept=Kept(30.0, None, 100.0))


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cellar_bounds, "local_zone", lambda: ZoneInfo("Europe/Berlin"))
    monkeypatch.setattr(adapting, "local_zone", lambda: UTC)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return generate(replace(TUNING, seed=3, vms=3, days=60, newcomers=0.0, leavers=0.0, every_hours=(6,)))


def config(**tiers: Any) -> Config:
    placement = {"hot": "7d", "cold": "rest"} if "cold" in tiers else None
    return Config.model_validate({"tiers": tiers, "placement": placement, "state": "/nowhere"})


def bounds(settings: Config, looks: pd.DataFrame | None = None) -> Bounds:
    return Cellar(settings, looks).bounds(empty_history(), [WEB], NOW)


def look(tier: str, used: float, free: float, at: float = NOW) -> pd.DataFrame:
    time = pd.to_datetime([at], unit="s", utc=True).astype("datetime64[ns, UTC]")
    return pd.DataFrame({"tier": [tier], "time": time, "bytes_used": [used], "bytes_free": [free]})


def test_what_hot_may_take_follows_the_local_clock_and_counts_reading_back() -> None:
    slow = config(hot={"storage": "/srv/x", "bandwidth": {"08:00-18:00": "20MiB/s", "otherwise": "100MiB/s"}})
    writes = bounds(slow).writes
    assert (writes[6 * 60 - 1], writes[6 * 60], writes[16 * 60 - 1], writes[16 * 60]) == tuple(
        rate * MIB for rate in (50, 10, 10, 50)
    ), "Berlin is two hours ahead in July"
    assert bounds(config(hot="/srv/x")).writes == ()
    half = bounds(config(hot={"storage": "/srv/x", "bandwidth": {"08:00-18:00": "20MiB/s"}})).writes
    assert half[0] == inf
    assert bounds(Config()) == Bounds()


def test_moves_bring_what_windows_and_rates_of_both_tiers_let_through() -> None:
    def cold(hot: dict[str, Any], **more: Any) -> float:
        tiers = {"hot": {"storage": "/srv/x", **hot}, "cold": {"storage": "s3://bucket/x", **more}}
        (store,) = [store for store in bounds(config(**tiers)).stores if store.name == "cold"]
        assert store.age == 7.0
        return store.moved

    assert cold({}) == inf
    assert cold({"moves": "22:00-06:00"}) == inf, "a window alone is no rate"
    assert cold({}, moves="22:00-02:00", bandwidth="10MiB/s") == 4 * 3600 * 5 * MIB
    assert cold({"bandwidth": "3MiB/s"}, moves="22:00-02:00", bandwidth="10MiB/s") == 4 * 3600 * 3 * MIB
    assert cold({"moves": "00:00-01:00"}, moves="22:00-02:00", bandwidth="10MiB/s") == 3600 * 5 * MIB
    archive = {"storage_class": "DEEP_ARCHIVE", "bandwidth": "10MiB/s"}
    assert cold({}, **archive) == DAY * 10 * MIB, "what is archived is not read back"


def test_room_is_what_the_forecast_leaves_of_a_tier(sample: Sample) -> None:
    now = sample.start.timestamp() + 60 * DAY
    cellar = Cellar(config(hot="/srv/x"), look("hot", 1e12, 5e11, now))
    (store,) = cellar.bounds(sample.frame, [WEB], now).stores
    fill = fill_of(sample.frame, "hot", 1e12, now, 30)
    assert store.room == pytest.approx(1.5e12 - fill.used[HORIZON] + 100 * RUN_BYTES)
    forever = cellar.bounds(sample.frame, [Need("web")], now).stores[0]
    assert forever.room < store.room, "without retention nothing goes"


def test_a_tier_that_nobody_looked_at_has_no_room_that_is_known_and_that_is_said() -> None:
    assert bounds(config(hot="/srv/x")).unknown == ()
    old = bounds(config(hot="/srv/x"), look("hot", 1e12, 5e11, NOW - 8 * DAY))
    assert old.stores[0].room == inf
    assert "nobody looked in 7 days" in old.unknown[0]
    young = bounds(config(hot="/srv/x"), look("hot", 1e12, 5e11))
    assert young.unknown[0].startswith("when hot is full (0 days of history on hot; 28 are needed, and 0 looks")
    endless = bounds(config(hot="/srv/x"), look("hot", 1e12, float("nan")))
    assert (endless.unknown, endless.stores[0].room) == ((), inf)


def kept(retention: Any, runs: int = 4, days: float = 100.0) -> Kept:
    return kept_by(BackupJob.model_validate({"name": "a", "retention": retention}), runs, days)


def test_retention_says_how_long_and_how_many_points_are_kept() -> None:
    assert kept("30d") == Kept(30.0, None, 120.0)
    assert kept("30d", days=10.0) == Kept(30.0, None, 40.0)
    assert kept({"daily": 7, "weekly": 4}) == Kept(28.0, 11, 11.0)
    assert kept({"last": 10}) == Kept(10.0, 10, 10.0)
    assert kept({}) == kept(None) == kept_by(None, 4, 100.0) == Kept(inf, None, 400.0)


def test_a_cellar_decides_in_the_advice_for_a_configuration(sample: Sample) -> None:
    now = sample.start.timestamp() + 60 * DAY
    jobs = [BackupJob.model_validate({"name": "all", "schedule": "0 2 * * *", "rpo": "12h", "breach_cost": 0.001})]
    dear = config(hot={"storage": "/srv/x", "prices": {"put_1000": 5.0}})
    wishes = adapting.Wishes(2, budget=2.0)
    free, paid = (
        adapting.advice_for(sample.frame, now, jobs, wishes, None, cellar)
        for cellar in (None, Cellar(dear, look("hot", 1e12, 5e11, NOW - 365 * DAY)))
    )
    runs = [sum(len(one.after) for one in made.changes) for made in (free, paid)]
    assert runs[1] < runs[0]
    assert paid.money is not None
    assert all("not worth" in one.why for one in paid.changes if one.decided)
    assert any(one.decided for one in paid.changes)
    assert "how full hot is" in paid.unknown[0]
