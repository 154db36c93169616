"""When Prefect's server runs what `schedule:` says, over the night in which clocks go back."""

from __future__ import annotations

import asyncio
from datetime import datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect.server.schemas import schedules

from tasks.timetable import prefect_schedule
from vmcellar.config.schedules import Schedule

BERLIN = ZoneInfo("Europe/Berlin")


def dates(schedule: Any, count: int = 3) -> list[str]:
    """The first runs after noon of 24 October 2026, the day before, in Berlin."""
    sent = prefect_schedule(Schedule.model_validate(schedule))
    taken = getattr(schedules, type(sent).__name__).model_validate_json(sent.model_dump_json())
    found = asyncio.run(taken.get_dates(count, start=datetime(2026, 10, 24, 12, tzinfo=BERLIN)))
    return [each.astimezone(BERLIN).isoformat(timespec="minutes") for each in found]


NIGHTS = ["2026-10-25T03:00+01:00", "2026-10-26T03:00+01:00", "2026-10-27T03:00+01:00"]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"rrule": "FREQ=DAILY;BYHOUR=3;BYMINUTE=0", "timezone": "Europe/Berlin"}, NIGHTS),
        ({"cron": "0 3 * * *", "timezone": "Europe/Berlin"}, NIGHTS),
        (
            {"rrule": "FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=3;BYMINUTE=0", "timezone": "Europe/Berlin"},
            ["2026-10-26T03:00+01:00", "2026-10-29T03:00+01:00", "2026-11-02T03:00+01:00"],
        ),
        (
            {"rrule": "FREQ=MONTHLY;BYDAY=1SU;BYHOUR=3;BYMINUTE=30", "timezone": "America/New_York"},
            ["2026-11-01T09:30+01:00", "2026-12-06T09:30+01:00", "2027-01-03T09:30+01:00"],
        ),
    ],
)
def test_a_time_of_day_is_that_of_the_zone_whatever_its_clocks_do(schedule: Any, expected: list[str]) -> None:
    assert dates(schedule) == expected


def test_an_interval_is_so_many_hours() -> None:
    found = [datetime.fromisoformat(each) for each in dates({"interval": "6h", "timezone": "Europe/Berlin"}, 5)]
    assert {(later - one).total_seconds() for one, later in pairwise(found)} == {6 * 3600.0}
