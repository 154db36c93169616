"""The error that a tier's forecast is said to have is the error that it has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit

from vmcellar.analysis.fill import DAMPING, LEAST_DAYS
from vmcellar.analysis.growth import Added, trend_of
from vmcellar.analysis.misses import Miss, misses_of

TIERS, DISKS, KNOWN, AHEAD = 100, 30, 168, 30
Draw = Callable[[np.random.Generator], np.ndarray]


def steady(random: np.random.Generator, wander: float = 0.0) -> np.ndarray:
    """Disks of quite different sizes, with noise, and with levels that wander by so much a day."""
    days = KNOWN + AHEAD
    size = np.exp(random.uniform(np.log(2e7), np.log(2e9), DISKS))
    walk = np.cumsum(random.normal(0, wander, (DISKS, days)), axis=1)
    return np.asarray(size[:, None] * np.exp(walk + random.normal(0, 0.3, (DISKS, days))))


def wandering(random: np.random.Generator) -> np.ndarray:
    """As `steady`, with levels that wander."""
    return steady(random, 0.03)


def together(random: np.random.Generator) -> np.ndarray:
    """All of them busy or quiet in the same weeks."""
    weeks = random.normal(0, 0.15, KNOWN // 7 + AHEAD // 7 + 1)
    return steady(random) * np.exp(np.repeat(weeks, 7)[: KNOWN + AHEAD])


def leaving(random: np.random.Generator) -> np.ndarray:
    """One in twenty goes in a month."""
    lives = random.exponential(600, DISKS)
    return np.where(np.arange(KNOWN + AHEAD) < lives[:, None], steady(random), 0.0)


def stepping(random: np.random.Generator) -> np.ndarray:
    """One in three did five times as much from some day on, of the weeks that past forecasts looked back on."""
    since = np.where(np.arange(DISKS) % 3 == 0, random.integers(60, 130, DISKS), KNOWN + AHEAD)
    return steady(random) * np.where(np.arange(KNOWN + AHEAD) >= since[:, None], 5.0, 1.0)


def ending_months(random: np.random.Generator) -> np.ndarray:
    """All do eight times as much on a month's last day; the first of the past forecasts did not know that."""
    last = (pd.Timestamp("2026-06-01", tz="UTC") + pd.to_timedelta(np.arange(KNOWN + AHEAD), unit="D")).is_month_end
    return steady(random) * np.where(last, 8.0, 1.0)


def added(table: np.ndarray) -> Added:
    return Added(table, (table > 0).astype(np.float64), np.zeros(table.shape[1]), 1_780_272_000.0)


def missed(draw: Draw) -> dict[int, list[tuple[float, Miss]]]:
    """What was really missed beside what was said of it, by days ahead."""
    found: dict[int, list[tuple[float, Miss]]] = {7: [], 30: []}
    for seed in range(TIERS):
        table = draw(np.random.default_rng(seed))
        known = added(table).until(KNOWN)
        said = trend_of(known).ahead(AHEAD, DAMPING)
        for one in misses_of(known, DAMPING, LEAST_DAYS):
            if one.days in found:
                came = table[:, KNOWN : KNOWN + one.days].sum()
                found[one.days].append((float(came / said[: one.days].sum() - 1), one))
    return found


@pytest.mark.parametrize(
    "draw", [steady, wandering, together, leaving, stepping, ending_months], ids=lambda one: one.__name__
)
def test_forecasts_are_off_by_as_much_as_is_said(draw: Draw) -> None:
    for days, each in missed(draw).items():
        assert len(each) == TIERS
        for level, least, most in ((80, 0.70, 0.93), (95, 0.88, 1.0)):
            inside = [abs(miss) <= stdtrit(one.freedom, 0.5 + level / 200) * one.error for miss, one in each]
            assert least <= np.mean(inside) <= most, (days, level)


def test_past_forecasts_that_knew_no_month_end_widen_nothing_once_they_are_known() -> None:
    """They missed by it; without them the error is that of this forecast."""
    misses, said = zip(*((miss, one.error) for miss, one in missed(ending_months)[30]), strict=True)
    assert np.median(said) == pytest.approx(np.std(misses), rel=0.05)


def test_disks_that_miss_together_have_few_degrees_of_freedom_and_others_many() -> None:
    apart, as_one = (np.median([one.freedom for _, one in missed(draw)[30]]) for draw in (steady, together))
    assert apart > 15 > as_one


def test_the_parts_that_disks_add_are_the_sum_of_what_the_tier_adds() -> None:
    known = added(together(np.random.default_rng(1))).until(KNOWN)
    trend = trend_of(known)
    for days in (1, 7, 30, 60, 100):
        assert trend.within(days, DAMPING).sum() == pytest.approx(trend.ahead(days, DAMPING).sum())


def test_where_too_little_is_known_nothing_is_said() -> None:
    table = steady(np.random.default_rng(1))
    assert misses_of(added(table).until(48), DAMPING, LEAST_DAYS) == []
    months = misses_of(added(table).until(60), DAMPING, LEAST_DAYS)
    assert [one.days for one in months] == [7, 14, 30, 60]
    assert months[2].error >= 0.7 * months[1].error, "no past forecast of 30 days is there: that of fewer stands"
