"""When a tier will be full that only moves write to, by earlier looks at it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vmcellar.analysis.capacity import TierUse, capacity
from vmcellar.analysis.history import empty_history
from vmcellar.analysis.looks import fill_of_looks

NOW = 1.8e9
DAY = 86400.0


def looks_of(tier: str, uses: dict[float, float]) -> pd.DataFrame:
    """Rows as `history.tier_use` gives them; `uses` by days before now."""
    frame = pd.DataFrame({"tier": tier, "time": [NOW - days * DAY for days in uses], "bytes_used": list(uses.values())})
    return frame.assign(time=pd.to_datetime(frame["time"], unit="s", utc=True)).sort_values("time", ignore_index=True)


def test_steady_growth_goes_on_whatever_the_hours_of_the_looks() -> None:
    looks = looks_of("cold", {days: 1000.0 - 10 * days for days in (60, 47.5, 31, 30, 12.25, 3)})
    (cold,) = capacity(empty_history(), [TierUse("cold", 1000, 300)], NOW, looks=looks)
    assert cold.per_day == pytest.approx(10)
    assert cold.full is not None
    assert cold.full.timestamp() == pytest.approx(NOW + 30 * DAY, abs=1)
    assert cold.earliest == cold.full


def test_a_tier_that_shrinks_is_never_full_and_never_below_nothing() -> None:
    fill = fill_of_looks(looks_of("cold", {days: 20.0 * days for days in range(1, 50)}), "cold", 0.0, NOW)
    assert fill.per_day < 0
    assert fill.used.min() == fill.low[95].min() == 0
    assert fill.days_to(10_000.0) is None


@pytest.mark.parametrize("uses", [{}, {20: 5.0, 10: 6.0, 5: 6.0, 2: 7.0}, {90: 1.0, 60: 2.0, 30: 3.0}])
def test_few_looks_are_refused_with_both_reasons(uses: dict[float, float]) -> None:
    (cold,) = capacity(empty_history(), [TierUse("cold", 8, 10)], NOW, looks=looks_of("cold", uses))
    assert cold.per_day is None
    assert f"{len(uses)} looks in" in cold.reason
    assert "days of history on cold" in cold.reason


def test_other_tiers_and_what_came_after_do_not_count() -> None:
    mine = looks_of("cold", {float(days): 100.0 - days for days in range(1, 60)})
    later = looks_of("cold", {-3.0: 1e6, -2.0: 1e6})
    other = looks_of("warm", {60.0: 7.0, 1.0: 7.0})
    looks = pd.concat((mine, later, other))
    fill = fill_of_looks(looks, "cold", 100.0, NOW)
    assert fill.per_day == pytest.approx(1)


@pytest.mark.parametrize("days", [29, 182])
def test_intervals_hold_what_they_say_of_growth_that_is_uneven(days: int) -> None:
    rng = np.random.default_rng(20261128)
    inside = dict.fromkeys((80, 95), 0)
    for _ in range(400):
        path = 20_000 + np.cumsum(rng.normal(100, 60, days + 30))
        uses = {float(days - 1 - day): float(path[day]) for day in range(days - 1)}
        fill = fill_of_looks(looks_of("cold", uses), "cold", float(path[days - 1]), NOW)
        for level in inside:
            inside[level] += int(fill.low[level][30] <= path[days + 29] <= fill.high[level][30])
    assert inside[80] / 400 == pytest.approx(0.80, abs=0.06)
    assert inside[95] / 400 == pytest.approx(0.95, abs=0.04)
