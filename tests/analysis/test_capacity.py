"""When a tier will be full, by a sample history."""

from __future__ import annotations

import pytest

from vmcellar.analysis.capacity import TierUse, capacity
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.sample import Settings, generate
from vmcellar.config.prices import AWS_PRICES, Prices


def test_a_tier_that_grows_will_be_full_and_one_without_an_end_not() -> None:
    frame = generate(Settings(seed=3, vms=6, days=90)).frame
    now = float(seconds_of(frame["started"]).max())
    (plenty,) = capacity(frame, [TierUse("hot", 0, 1 << 60)], now)
    assert plenty.per_day is not None
    assert (plenty.full, plenty.reason) == (None, "not within a year")
    (near,) = capacity(frame, [TierUse("hot", 0, int(30 * plenty.per_day))], now)
    assert near.full is not None
    assert near.full.timestamp() == pytest.approx(now + 30 * 86400, abs=4 * 86400)
    assert near.earliest is not None
    assert near.earliest <= near.full
    (endless,) = capacity(frame, [TierUse("hot", 0, None)], now)
    assert (endless.full, endless.reason) == (None, "the tier knows no end")


def test_what_a_tier_will_cost_follows_from_its_growth_and_its_prices() -> None:
    frame = generate(Settings(seed=3, vms=6, days=90)).frame
    now = float(seconds_of(frame["started"]).max())
    cold = AWS_PRICES["DEEP_ARCHIVE"]
    prices = {"hot": Prices(gb_month=0.1)}
    (hot,) = capacity(frame, [TierUse("hot", 10**12, None)], now, prices=prices)
    today, month, year = hot.costs
    assert today.month == pytest.approx(0.1 * 10**12 / 2**30, rel=0.01)
    assert hot.per_day is not None
    assert month.month - today.month == pytest.approx(0.1 * 30 * hot.per_day / 2**30, rel=0.05)
    assert month.low <= month.month <= month.high
    assert year.month > month.month
    assert today.thaw is None
    (archive,) = capacity(frame[:0], [TierUse("cold", 10**12, None)], now, prices={"cold": cold})
    (only,) = archive.costs
    assert only.thaw is not None
    assert only.thaw > 0
    (free,) = capacity(frame, [TierUse("hot", 10**12, None)], now, prices={"hot": Prices()})
    assert free.costs == ()


def test_a_short_history_is_refused_with_a_reason() -> None:
    frame = generate(Settings(seed=3, vms=2, days=3)).frame
    (tier,) = capacity(frame, [TierUse("hot", 5, 10)], float(seconds_of(frame["started"]).max()))
    assert (tier.used, tier.per_day) == (5, None)
    assert "are needed" in tier.reason
