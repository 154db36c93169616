"""`schedule:` and `window:` in `vmcellar.yaml`: what would never run, or hang a server, is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.timetable import prefect_schedule
from vmcellar.config.jobs import BackupJob
from vmcellar.config.schedules import Schedule


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"cron": "0 0 30 2 *"}, "this day never comes"),
        ({"cron": "0 2-2 * * *"}, "one time: write 2"),
        ({"cron": "0 0 31 apr,jun *"}, "this day never comes"),
        ({"interval": "99999999999y"}, "at most ten years"),
        ({"rrule": "FREQ=DAILY;INTERVAL=0"}, "never ends"),
        ({"rrule": "FREQ=SECONDLY"}, "YEARLY to HOURLY"),
        ({"rrule": "FREQ=MINUTELY;INTERVAL=5"}, "YEARLY to HOURLY"),
        ({"rrule": "FREQ=DAILY;COUNT=3"}, "COUNT counts from 2020"),
        ({"rrule": "FREQ=DAILY;UNTIL=20300101T000000Z"}, "without the Z"),
        ({"rrule": "FREQ=HOURLY;BYMONTH=2;BYMONTHDAY=30"}, "it never comes"),
        ({"rrule": "RDATE:20300101T000000"}, "one RRULE"),
        ({"cron": "0 2 * * *", "timezone": "posix/Europe/Berlin"}, "no name of a place"),
    ],
)
def test_a_schedule_by_which_nothing_runs_or_a_server_hangs_is_refused(schedule: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Schedule.model_validate(schedule)


@pytest.mark.parametrize(
    "schedule",
    [
        {"cron": "0 0 29 2 *"},
        {"cron": "0 0 30 2 mon"},
        {"cron": "0 0 31 */2 *"},
        {"cron": "0 0 31 nov-jan *"},
        {"cron": "0 0 25-5 2 *"},
        {"cron": "0 0 */15 2 *"},
        {"rrule": "FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=3;BYMINUTE=0"},
        {"rrule": "FREQ=DAILY;UNTIL=20200101T000000"},
        {"rrule": "DTSTART;TZID=Europe/Berlin:20200101T000000\nRRULE:FREQ=DAILY"},
        {"rrule": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29"},
        {"interval": "52w"},
    ],
)
def test_one_that_comes_ever_so_seldom_is_taken_and_prefect_takes_it(schedule: dict[str, str]) -> None:
    assert prefect_schedule(Schedule.model_validate(schedule))


@pytest.mark.parametrize(
    ("cron", "window", "meets"),
    [
        ("0 1 * * *", "02:00-04:00", False),
        ("0 4 * * *", "02:00-04:00", False),
        ("59 3 * * *", "02:00-04:00", True),
        ("0 2 * * *", "02:00-04:00", True),
        ("0 6,12 * * *", "22:00-06:00", False),
        ("30 5 * * sun", "22:00-06:00", True),
        ("*/15 * * * *", "02:01-02:16", True),
        ("*/15 * * * *", "02:01-02:15", False),
        ("0 22-4/3 * * *", "00:30-01:30", True),
        ("0 9 * * *", "00:00-00:00", True),
    ],
)
def test_a_window_in_which_no_run_is_due_is_refused(cron: str, window: str, meets: bool) -> None:
    """Each run would be skipped, each night, and none would fail."""
    job = {"name": "nightly", "schedule": cron, "window": window}
    if meets:
        assert BackupJob.model_validate(job)
    else:
        with pytest.raises(ValidationError, match="no run would begin"):
            BackupJob.model_validate(job)
    elsewhere = {**job, "schedule": {"cron": cron, "timezone": "Asia/Tokyo"}}
    assert BackupJob.model_validate(elsewhere), "its times are not the window's"
