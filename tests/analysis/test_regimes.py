"""What is taken for a lasting shift, and for a month's end, and what is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.analysis.test_forecast import START, history, only
from vmcellar.analysis.forecast import forecast_change


def test_quiet_hours_that_are_less_quiet_are_no_shift() -> None:
    """Some log lines where there were none move the logarithms of most hours, and next to no bytes."""
    random = np.random.default_rng(5)
    hours = np.arange(0, 24 * 7 * 10, 1.0)
    busy = ((hours % 24) // 8 == 1) & (hours // 24 % 7 < 5)
    quiet = np.where(hours > 24 * 7 * 8.5, 3e6, 0.0)
    one = only(forecast_change(history(hours, np.where(busy, 1e9, quiet) * np.exp(random.normal(0, 0.2, len(hours))))))
    assert one.shift_days == -1
    assert one.mean.sum() == pytest.approx(80e9, rel=0.1)


@pytest.mark.parametrize("by", [3.0, 1 / 3])
def test_what_came_before_the_last_shift_is_found_where_a_later_one_is_none(by: float) -> None:
    random = np.random.default_rng(6)
    hours = np.arange(0, 24 * 7 * 12, 1.0)
    busy = ((hours % 24) // 8 == 1) & (hours // 24 % 7 < 5)
    level = np.where(hours > 24 * 7 * 6, by, 1.0) * np.exp(random.normal(0, 0.2, len(hours)))
    quiet = np.where(hours > 24 * 7 * 10, 3e6, 3e5)
    one = only(forecast_change(history(hours, np.where(busy, 1e9, quiet) * level)))
    assert 40 <= one.shift_days <= 44


def test_one_odd_day_at_one_of_two_month_ends_is_no_month_end() -> None:
    """A failed run moves half of a working day's change to the day off after it, which is usually idle."""
    days = np.arange(2, 24 * 80, 24.0)
    begins = START + pd.to_timedelta(days, unit="h") - pd.Timedelta("1D")
    working = begins.weekday.to_numpy() < 5
    changed = np.where(working, 1e9, 0.0)
    ok = np.ones(len(days), bool)
    friday = int(np.flatnonzero(begins.normalize() == pd.Timestamp("2026-01-30", tz="UTC"))[0])
    assert begins[friday + 1].is_month_end
    ok[friday], changed[friday], changed[friday + 1] = False, 0.0, 1e9
    one = only(forecast_change(history(days, changed, ok=ok)))
    assert one.month_end == 0.0
