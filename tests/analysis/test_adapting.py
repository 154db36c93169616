"""Advice for a configuration's VMs: who is left alone, what becomes of it, how it is taken back, what it brought."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from vmcellar.analysis import adapting
from vmcellar.analysis.advise import Advice, Change
from vmcellar.analysis.gains import came, gains
from vmcellar.analysis.history import empty_history
from vmcellar.analysis.judging import Judgement, Starts
from vmcellar.analysis.loads import current_starts
from vmcellar.analysis.sample import TUNING, Sample, generate
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.models import ScheduleChange
from vmcellar.config.jobs import BackupJob
from vmcellar.config.model import Config
from vmcellar.config.schedules import Schedule
from vmcellar.policy.timetable import job_entries, read_advised

DAY, HOUR = 86400.0, 3600.0
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
NOTHING = Judgement(0.1, 0.1, 0.0, 60.0)


@pytest.fixture(scope="module")
def sample() -> Sample:
    quiet = replace(TUNING, seed=3, vms=3, days=40, newcomers=0.0, leavers=0.0, outage_share=0.0)
    return generate(replace(quiet, classes=("office",), every_hours=(6,)))


def job(name: str = "all", **fields: Any) -> BackupJob:
    return BackupJob.model_validate({"name": name, "schedule": "0 2 * * *", "rpo": "12h", **fields})


def advice(*changes: tuple[str, Starts, Starts]) -> Advice:
    made = (Change(vm, "local", was, will, NOTHING, NOTHING, "why") for vm, was, will in changes)
    return Advice(tuple(made), (), {})


def settings(state: Path, *jobs: BackupJob) -> Config:
    return Config(state=state, backups=jobs)


def test_a_vm_that_is_gone_takes_no_share_and_a_weekly_one_does_not_become_daily(sample: Sample) -> None:
    frame, now = sample.frame, (sample.start + pd.Timedelta(days=40)).timestamp()
    gone = (frame["vm"] == "office-0000") & (frame["started"] > sample.start + pd.Timedelta(days=20))
    weekly = (frame["vm"] == "office-0001") & ~(frame["started"].dt.dayofweek.eq(6) & frame["started"].dt.hour.lt(5))
    assert set(current_starts(frame[~gone & ~weekly], now)) == {"office-0002"}


def test_who_has_no_single_job_with_a_schedule_stays_as_it_is(sample: Sample) -> None:
    now = (sample.start + pd.Timedelta(days=40)).timestamp()
    jobs = [
        job(domains=["*", "!office-0001"], rpo="7h"),
        job("twice", domains=["office-0000"]),
        job("full", domains=["office-0001"], mode="full", rpo="7h"),
    ]
    made = adapting.advice_for(sample.frame, now, jobs, adapting.Wishes(2, budget=4.0))
    assert {one.vm for one in made.changes if one.before == one.after} == {"office-0000", "office-0001"}
    assert len(made.changes) == 3


def test_the_shortest_promise_counts_also_that_of_a_job_that_runs_by_hand() -> None:
    """By it `slo` and the watch judge the VM."""
    by_hand = BackupJob.model_validate({"name": "critical", "domains": ["db"], "rpo": "4h"})
    jobs = [job(rpo="24h"), by_hand]
    assert adapting.need_of("db", jobs, None, NOW.timestamp()).rpo == 4 * HOUR
    assert adapting.need_of("web", jobs, None, NOW.timestamp()).rpo == 24 * HOUR
    assert adapting.need_of("web", [job(rpo=None)], 8 * HOUR, NOW.timestamp()).rpo == 8 * HOUR


def test_an_empty_history_gives_no_advice() -> None:
    assert adapting.advice_for(empty_history(), NOW.timestamp(), [job()], adapting.Wishes(2)).changes == ()


def test_in_a_window_schedules_move_with_the_clock_of_the_window() -> None:
    zone = ZoneInfo("Europe/Berlin")
    night = job("night", domains=["a"], window="22:00-06:00")
    made, _ = adapting.advised_of(
        advice(("a", (20 * 60,), (20 * 60 + 10,)), ("b", (0,), (90,))),
        [night, job("day", domains=["b"])],
        [],
        NOW,
        zone,
    )
    by_job = {entry.job: entry.schedule for entry in made}
    assert (by_job["night"].cron, by_job["night"].timezone) == ("10 22 * * *", "Europe/Berlin"), "22:10 all year round"
    assert (by_job["day"].cron, by_job["day"].timezone) == ("30 1 * * *", "UTC")


def test_advice_that_says_stay_keeps_what_was_advised_before(tmp_path: Path) -> None:
    catalog = Catalog.of(Config(state=tmp_path), b"r" * 16)
    config = settings(tmp_path, job(domains=["a", "b", "gone"]))
    first = adapting.apply(config, catalog, advice(("a", (0,), (90,)), ("b", (0,), (0,)), ("gone", (0,), (90,))), "x")
    assert first.changed == ("a", "gone")
    again = adapting.apply(config, catalog, advice(("a", (90,), (90,)), ("b", (0,), (60,))), "x")
    assert again.changed == ("b", "gone"), "who has no history any more has no schedule of its own any more"
    standing = job_entries(config, read_advised(tmp_path))["all"]
    entries = {tuple(entry.request.get("vms", ())): str(entry.schedule) for entry in standing}
    assert entries[("a",)].startswith("30 1 * * *")
    assert entries[("b",)].startswith("0 1 * * *")
    nothing = adapting.apply(config, catalog, advice(("a", (90,), (90,)), ("b", (60,), (60,))), "x")
    assert nothing.changed == ()
    assert adapting.undo(config, catalog, "x") == ("b", "gone")
    rows = [(row.vm, row.reason) for row in catalog.schedule_changes()]
    assert rows[-2:] == [("b", "undone"), ("gone", "undone")]


def test_a_history_that_is_lost_takes_no_schedule_away(tmp_path: Path) -> None:
    catalog, config = Catalog.of(Config(state=tmp_path), b"r" * 16), settings(tmp_path, job(domains=["a"]))
    adapting.apply(config, catalog, advice(("a", (0,), (90,))), "x")
    nothing = adapting.advice_for(empty_history(), NOW.timestamp(), config.backups, adapting.Wishes(2))
    assert adapting.apply(config, catalog, nothing, "x").changed == ()
    assert [entry.vms for entry in read_advised(tmp_path)] == [("a",)]


def test_a_day_with_a_pause_is_known_by_what_was_advised() -> None:
    tight = tuple(118 * k for k in range(12))
    held, _ = adapting.advised_of(advice(("a", (0,), tight)), [job(domains=["a"])], [], NOW, ZoneInfo("UTC"))
    assert len(held) == len({start % 60 for start in tight})
    now = NOW.timestamp()
    assert adapting.standing_starts(held, [job(domains=["a"])], now) == {"a": tight}
    assert adapting.standing_starts(held, [job("other", domains=["a"])], now) == {}, "it is another job's now"
    odd = held[0].model_copy(update={"schedule": Schedule(cron="10 2 * * mon")})
    assert adapting.standing_starts([*held, odd], [job(domains=["a"])], now) == {}, "somebody wrote it by hand"


def test_what_was_advised_for_a_window_holds_while_it_lies_inside() -> None:
    night, starts = job("night", domains=["a"], window="22:00-06:00"), (60, 22 * 60 + 10)
    held, _ = adapting.advised_of(advice(("a", (0,), starts)), [night], [], NOW, ZoneInfo("UTC"))
    assert adapting.standing_starts(held, [night], NOW.timestamp()) == {"a": starts}
    moved = job("night", domains=["a"], window="01:00-06:00")
    assert adapting.standing_starts(held, [moved], NOW.timestamp()) == {}


def test_advice_that_holds_is_today_s_schedule_whatever_the_history_looks_like(sample: Sample) -> None:
    now = (sample.start + pd.Timedelta(days=40)).timestamp()
    jobs = [job(domains=["*"])]
    first = adapting.advice_for(sample.frame, now, jobs, adapting.Wishes(2, budget=2.0))
    held, _ = adapting.advised_of(first, jobs, [], datetime.fromtimestamp(now, UTC), ZoneInfo("UTC"))
    assert held
    own = {one.vm: len(one.before) for one in first.changes}
    again = adapting.advice_for(sample.frame, now, jobs, adapting.Wishes(2, budget=2.0), own, None, held)
    after = {one.vm: one.after for one in first.changes}
    assert {one.vm: one.before for one in again.changes} == after
    assert {one.vm: one.after for one in again.changes} == after, "advice does not flap"


def test_a_vm_of_two_jobs_is_named_and_left(tmp_path: Path) -> None:
    config = settings(tmp_path, job(domains=["a"]), job("other", domains=["*"]))
    done = adapting.apply(config, Catalog.of(Config(state=tmp_path), b"r" * 16), advice(("a", (0,), (90,))), "x")
    assert done == adapting.Applied((), ("a",))


def runs(*spans: tuple[float, float, float]) -> pd.DataFrame:
    """Good runs of `a`: from, until (days from NOW), every so many hours; each takes a minute."""
    times = np.concatenate([np.arange(first, last, hours / 24) for first, last, hours in spans])
    frame = pd.DataFrame({"started": [NOW + timedelta(days=float(each)) for each in times]})
    frame["started"] = frame["started"].astype("datetime64[ns, UTC]")
    return frame.assign(vm="a", run_id=[f"r{i}" for i in range(len(frame))], ok=True, seconds=60.0)


def change(day: float, predicted: dict[str, Any] | None, reason: str = "more runs", vm: str = "a") -> ScheduleChange:
    return ScheduleChange(
        id=f"{vm}{day}", repository="r", vm=vm, time=NOW.timestamp() + day * DAY, before="b", after="a",
        reason=reason, applied=True, predicted=predicted,
    )  # fmt: skip


def day_figures(breaches: float, seconds: float) -> dict[str, float]:
    return {"breaches": breaches, "late_hours": 0.0, "exposure": 0.0, "seconds": seconds}


PREDICTED = {"runs": 2, "rpo": 10 * HOUR, "was": day_figures(2.0, 120.0), "will": day_figures(0.0, 240.0)}


def test_the_gain_that_came_stands_beside_what_was_predicted() -> None:
    (gain,) = gains([change(-10, PREDICTED)], runs((-30, -10, 12), (-10, 0, 6)), NOW.timestamp())
    assert (gain.before.breaches, gain.after.breaches) == (20, 1), "twice a day; the last gap ended after the change"
    assert gain.expected_before == pytest.approx(20)
    assert gain.after.seconds == pytest.approx(240)
    assert (gain.verdict, gain.early) == ("as predicted", False)


def test_a_schedule_that_serves_worse_is_said_so() -> None:
    (gain,) = gains([change(-14, PREDICTED)], runs((-30, -14, 6), (-14, 0, 12)), NOW.timestamp())
    assert "more breaches than predicted" in gain.verdict
    assert "50% less work than predicted" in gain.verdict


def test_it_is_too_early_with_few_days_or_runs() -> None:
    (gain,) = gains([change(-3, PREDICTED)], runs((-30, 0, 6)), NOW.timestamp())
    assert gain.early
    (gain,) = gains([change(-9, PREDICTED)], runs((-30, -8, 6)), NOW.timestamp())
    assert gain.verdict == "too early: 4 of 10 runs in 9.0 of 7 days"


def test_what_was_taken_back_or_came_from_elsewhere_has_no_gain() -> None:
    changes = [change(-20, PREDICTED), change(-9, None, "undone"), change(-9, None, vm="b")]
    assert gains(changes, runs((-30, 0, 6)), NOW.timestamp()) == []
    (only,) = gains([change(-20, PREDICTED, vm="new")], runs((-30, 0, 6)), NOW.timestamp())
    assert only.early, "a VM without any run"


def test_the_runs_before_any_advice_are_remembered_until_it_is_taken_back() -> None:
    first, second = change(-20, PREDICTED), change(-10, {**PREDICTED, "runs": 4})
    first.before = adapting.OWN
    assert adapting.own_runs([first, second]) == {"a": 2}
    back = change(-5, None)
    back.after = adapting.OWN
    assert adapting.own_runs([first, second, back]) == {}


def test_figures_of_no_time_at_all_are_nothing() -> None:
    assert came(runs((-1, 0, 6)), NOW.timestamp(), NOW.timestamp(), 10 * HOUR).runs == 0
    assert came(runs((-1, 0, 6)), NOW.timestamp() - DAY, NOW.timestamp(), None).breaches is None
