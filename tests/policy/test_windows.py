"""Windows over midnight and on days when clocks change; starts that are spread."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.config.units import Window, parse_window
from vmcellar.policy.windows import delay, seconds_left

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("window", "time", "left"),
    [
        ("02:00-04:00", "02:00", 7200),
        ("02:00-04:00", "03:59", 60),
        ("02:00-04:00", "04:00", 0),
        ("02:00-04:00", "01:59", 0),
        ("22:00-06:00", "23:00", 7 * 3600),
        ("22:00-06:00", "05:00", 3600),
        ("22:00-06:00", "06:00", 0),
        ("22:00-06:00", "12:00", 0),
        ("00:00-00:00", "00:00", 86400),
        ("07:00-07:00", "06:00", 3600),
    ],
)
def test_a_window_ends_when_it_says(window: str, time: str, left: float) -> None:
    hour, minute = (int(part) for part in time.split(":"))
    moment = datetime(2026, 7, 1, hour, minute, tzinfo=BERLIN)
    assert seconds_left(parse_window(window), moment) == left


def test_no_window_means_always() -> None:
    assert seconds_left(None, datetime(2026, 7, 1, tzinfo=BERLIN)) is None


def test_the_night_when_clocks_go_back_is_an_hour_longer() -> None:
    begin = datetime(2026, 10, 25, 1, 0, tzinfo=BERLIN)
    assert seconds_left(parse_window("01:00-04:00"), begin) == 4 * 3600
    second_half_past_two = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)
    assert seconds_left(parse_window("01:00-04:00"), second_half_past_two) == 1.5 * 3600


def test_the_night_when_clocks_go_forward_is_an_hour_shorter() -> None:
    begin = datetime(2026, 3, 29, 1, 0, tzinfo=BERLIN)
    assert seconds_left(parse_window("01:00-04:00"), begin) == 2 * 3600


@given(
    st.integers(0, 1439),
    st.integers(0, 1439),
    st.integers(1767222000, 1798758000).map(lambda second: datetime.fromtimestamp(second, BERLIN)),
)
def test_what_is_left_ends_at_the_windows_end(start: int, end: int, moment: datetime) -> None:
    left = seconds_left(Window(start, end), moment)
    assert left is not None
    assert 0 <= left <= 25 * 3600
    if left:
        after = datetime.fromtimestamp(moment.timestamp() + left, BERLIN)
        assert after.hour * 60 + after.minute in (end, end + 60)  # a time that a day with 23 hours does not have


def test_starts_are_spread_evenly_and_stay_the_same() -> None:
    starts = sorted(delay(f"vm{number}", 3600) for number in range(1000))
    assert all(0 <= start < 3600 for start in starts)
    assert delay("vm1", 3600) == delay("vm1", 3600)
    busiest = max(sum(start <= other < start + 60 for other in starts) for start in starts)
    assert busiest < 45, "a minute of an hour takes about 17 of 1,000"
    assert timedelta(seconds=starts[-1] - starts[0]) > timedelta(minutes=58)
