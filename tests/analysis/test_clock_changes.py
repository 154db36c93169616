"""Nights in which clocks change, in Europe/Berlin: forecasts, alarms, RPO, advised schedules in windows."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.server.schemas.schedules import CronSchedule

from bench.analysis_forecast import in_zone
from tests.analysis.test_fill import daily
from vmcellar.analysis import adapting
from vmcellar.analysis.advise import Advice, Change
from vmcellar.analysis.anomalies import find
from vmcellar.analysis.clock import as_now, as_then
from vmcellar.analysis.forecast import Forecast, forecast_change
from vmcellar.analysis.judging import Judgement
from vmcellar.analysis.loads import current_starts
from vmcellar.analysis.objectives import rpo
from vmcellar.analysis.sample import TUNING, Sample, generate
from vmcellar.config.jobs import BackupJob
from vmcellar.policy.windows import seconds_left

BERLIN = ZoneInfo("Europe/Berlin")
SPRING, AUTUMN = datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)
NIGHTS = pytest.mark.parametrize("night", [SPRING, AUTUMN], ids=["spring", "autumn"])
NOTHING = Judgement(0.0, 0.0, 0.0, 0.0)
MOMENTS = st.floats(1_767_225_600, 1_798_761_600)


def around(night: datetime, seed: int = 77, vms: int = 27) -> Sample:
    """VMs that live by the clock, hourly, for 90 days up to a week after a night."""
    start = (night - timedelta(days=83)).date().isoformat()
    settings = replace(TUNING, seed=seed, vms=vms, days=90, start=start, every_hours=(1,), classes=("nightly", "daily"))
    return in_zone(generate(replace(settings, newcomers=0.0, leavers=0.0, outage_share=0.0, failures=0.0)), BERLIN)


@given(MOMENTS, st.floats(0, 200 * 86400), st.floats(0, 200 * 86400))
def test_moments_keep_their_order_and_their_time_of_day(now: float, one: float, other: float) -> None:
    before = now - np.sort(np.array([one, other]))[::-1]
    moved = as_now(before, BERLIN, now)
    assert moved[0] <= moved[1] <= now
    offset = datetime.fromtimestamp(now, BERLIN).utcoffset()
    assert offset is not None
    shown = datetime.fromtimestamp(moved[0], UTC).replace(tzinfo=None) + offset
    was = datetime.fromtimestamp(before[0], BERLIN)
    assert abs(shown - was.replace(tzinfo=None)) < timedelta(milliseconds=1) or was.fold or was.hour == 2
    back = as_then(moved, BERLIN, now)
    assert np.all(np.abs(back - before) <= 3600.001), "of an hour that is shown twice the second half is meant"


def test_where_clocks_do_not_change_nothing_moves() -> None:
    moments = np.array([SPRING.timestamp() - 1e6, SPRING.timestamp() + 10])
    assert as_now(moments, ZoneInfo("Asia/Tokyo"), moments[1]) is moments
    assert as_now(moments, UTC, moments[1]) is moments


@NIGHTS
@pytest.mark.parametrize("days", [-2, 2], ids=["before", "after"])
def test_the_busiest_hour_is_forecast_by_the_clock_of_its_day(night: datetime, days: int) -> None:
    frame = around(night).frame
    now = (night + timedelta(days=days)).timestamp()
    known = frame[frame["started"] <= pd.Timestamp(night - timedelta(days=3))]
    nightly = [one for one in forecast_change(frame, now, BERLIN).forecasts if one.vm.startswith("nightly")]
    assert len(nightly) >= 10
    right = [busiest(one, night + timedelta(days=4)) == usually_busiest(known, one.vm) for one in nightly]
    assert np.mean(right) > 0.8


def busiest(one: Forecast, day: datetime) -> int:
    """The hour of that day in Berlin that ends with the most change."""
    begin = day.astimezone(BERLIN).replace(hour=0).timestamp()
    steps = np.flatnonzero((one.starts >= begin) & (one.starts < begin + 86400))
    start = float(one.starts[steps[np.argmax(one.middle[steps])]])
    return datetime.fromtimestamp(start + 3600, BERLIN).hour


def usually_busiest(frame: pd.DataFrame, vm: str) -> int:
    own = frame[(frame["vm"] == vm) & (frame["disk"] == "vda") & (frame["kind"] == "incremental")]
    return int(own.groupby(own["started"].dt.tz_convert(BERLIN).dt.hour)["bytes_changed"].median().idxmax())


@NIGHTS
def test_the_week_after_has_no_false_alarms_for_it(night: datetime) -> None:
    sample = around(night, vms=60)
    now = (night + timedelta(days=6)).timestamp()
    told = {zone: Counter(one.kind for one in find(sample.frame, now, 7.0, zone))["change"] for zone in (UTC, BERLIN)}
    assert told[BERLIN] <= 3
    assert told[UTC] >= 10, "what it would be without"


@NIGHTS
def test_an_anomaly_of_before_keeps_its_time(night: datetime) -> None:
    frame = around(night, vms=2).frame
    one = frame.index[(frame["vm"] == "nightly-0000") & (frame["started"] > pd.Timestamp(night - timedelta(days=3)))][0]
    frame.loc[one, "seconds_frozen"] = 60.0
    at = frame.loc[one, "started"].timestamp()
    (found,) = (
        each for each in find(frame, (night + timedelta(days=2)).timestamp(), zone=BERLIN) if each.kind == "freeze"
    )
    assert abs(found.at - at) <= 1800
    assert found.began < at


@pytest.mark.parametrize(("night", "hours"), [(SPRING, 24.0), (AUTUMN, 25.0)], ids=["spring", "autumn"])
def test_a_daily_backup_by_the_clock_is_an_hour_older_in_autumn_alone(night: datetime, hours: float) -> None:
    frame = daily(np.full(8, 1.0))
    days = [(night + timedelta(days=day)).astimezone(BERLIN).replace(hour=12, minute=0) for day in range(-4, 4)]
    frame["started"] = pd.to_datetime([day.timestamp() for day in days], unit="s", utc=True).as_unit("ns")
    now = frame["started"].max()
    (told,) = rpo(frame, {"web": 24.5 * 3600}, now).to_dict("records")
    assert told["worst"] == pytest.approx(hours * 3600 + 10)
    assert told["breaches"] == (hours > 24.5)


@NIGHTS
def test_what_is_advised_in_a_window_begins_in_it_before_and_after(
    night: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapting, "local_zone", lambda: BERLIN)
    job = BackupJob.model_validate(
        {"name": "night", "domains": ["*"], "schedule": "0 22 * * *", "rpo": "8h", "window": "22:00-06:00"}
    )
    for days in (-1, 2):
        now = night + timedelta(days=days)
        frame = around(night, vms=4).frame
        frame = frame[frame["started"] <= pd.Timestamp(now)]
        made = adapting.advice_for(frame, now.timestamp(), [job], adapting.Wishes(2, budget=1.0))
        assert len(made.changes) == 4
        schedules = [each.schedule for each in adapting.advised_of(made, [job], [], now, BERLIN)[0]]
        assert {each.timezone for each in schedules} == {"Europe/Berlin"}
        for each in schedules:
            for start in starts_of(str(each.cron), night - timedelta(days=3), 40):
                assert seconds_left(job.window, start), start


def starts_of(cron: str, begin: datetime, count: int) -> list[datetime]:
    """As a Prefect server makes them of a cron line in Berlin."""
    made = CronSchedule(cron=cron, timezone="Europe/Berlin").get_dates(n=count, start=begin)
    return [datetime.fromtimestamp(each.timestamp(), BERLIN) for each in asyncio.run(made)]


def test_a_start_in_the_hour_that_is_left_out_is_an_hour_later_and_one_that_comes_twice_is_once() -> None:
    spring, autumn = (starts_of("30 2 * * *", night - timedelta(days=1), 3) for night in (SPRING, AUTUMN))
    assert [f"{each:%d %H:%M}" for each in spring] == ["28 02:30", "29 03:30", "30 02:30"]
    assert [f"{each:%d %H:%M}" for each in autumn] == ["25 02:30", "26 02:30", "27 02:30"]


def test_a_vm_keeps_its_one_start_over_the_night() -> None:
    frame = daily(np.full(60, 1.0))
    days = [(AUTUMN + timedelta(days=day)).astimezone(BERLIN).replace(hour=23, minute=30) for day in range(-58, 2)]
    frame["started"] = pd.to_datetime([day.timestamp() for day in days], unit="s", utc=True).as_unit("ns")
    now = (AUTUMN + timedelta(days=2)).timestamp()
    assert current_starts(frame, now) == {"web": (22 * 60 + 30,)}
    stays = Change("web", "local", (22 * 60 + 30,), (22 * 60 + 30,), NOTHING, NOTHING, "")
    assert adapting.advised_of(Advice((stays,), (), {}), [BackupJob(name="a")], [], AUTUMN, BERLIN) == ([], ["web"])
