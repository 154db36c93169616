"""What runs when: jobs' schedules, what was advised in their place, and the maintenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.parameters import AdaptSchedules
from vmcellar.config.model import Config
from vmcellar.config.schedules import Schedule
from vmcellar.errors import PermanentError
from vmcellar.policy.timetable import (
    ADVISED_FILE,
    Advised,
    Entry,
    job_entries,
    maintenance_entries,
    read_advised,
    write_advised,
)

NIGHTLY = Schedule(cron="0 2 * * *")
HOURLY = Schedule.model_validate({"interval": "1h"})


def config(**job: Any) -> Config:
    return Config.model_validate({"backups": [{"name": "nightly", **job}]})


def test_a_job_without_a_schedule_runs_by_hand_only_whatever_was_advised() -> None:
    assert job_entries(config(), [Advised(job="nightly", schedule=HOURLY)]) == {"nightly": []}


def test_a_jobs_own_schedule() -> None:
    (entry,) = job_entries(config(schedule="0 2 * * *"), [])["nightly"]
    assert entry == Entry("vmcellar", NIGHTLY, {"job": "nightly", "scheduled": True})


def test_what_was_advised_for_all_takes_its_place() -> None:
    advised = [Advised(job="nightly", schedule=HOURLY), Advised(job="gone", schedule=HOURLY)]
    (entry,) = job_entries(config(schedule="0 2 * * *"), advised)["nightly"]
    assert entry.schedule == HOURLY


def test_what_was_advised_for_some_leaves_them_out_of_the_rest() -> None:
    advised = [Advised(job="nightly", vms=("db", "app"), schedule=HOURLY)]
    rest, some = job_entries(config(schedule="0 2 * * *"), advised)["nightly"]
    assert (rest.schedule, rest.request["except_vms"]) == (NIGHTLY, ["app", "db"])
    assert (some.schedule, some.request["vms"]) == (HOURLY, ["app", "db"])
    assert rest.slug != some.slug


def test_what_was_advised_before_the_window_was_moved_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would begin outside of it, and every run of the VM be skipped."""
    monkeypatch.setenv("TZ", "Europe/Berlin")

    def of(window: str, *lines: Schedule) -> list[list[str]]:
        advised = [Advised(job="nightly", vms=("db",), schedule=line) for line in lines]
        advised.append(Advised(job="nightly", vms=("app",), schedule=Schedule(cron="0 1 * * *", timezone="UTC")))
        entries = job_entries(config(schedule="30 2 * * *", window=window), advised)["nightly"]
        return [entry.request["vms"] for entry in entries if "vms" in entry.request]

    evening, night = (Schedule(cron=f"10 {hour} * * *", timezone="Europe/Berlin") for hour in (23, 3))
    assert of("22:00-06:00", evening, night) == [["db"], ["db"], ["app"]]
    assert of("01:00-06:00", evening, night) == [["app"]], "one of the VM's two starts lies outside"
    assert of("01:30-02:45", night) == [], "what begins at 1:00 UTC lies inside in winter alone"


def test_advised_schedules_are_kept(tmp_path: Path) -> None:
    advised = (Advised(job="nightly", vms=("db",), schedule=HOURLY, why="changes a lot", time="2026-11-28T00:00:00Z"),)
    assert read_advised(tmp_path) == ()
    write_advised(tmp_path, advised)
    assert read_advised(tmp_path) == advised


@pytest.mark.parametrize("text", ["", "{", "[{}]", json.dumps([{"job": "a", "schedule": "no"}])])
def test_a_damaged_file_is_an_error_that_says_what_holds_without_it(tmp_path: Path, text: str) -> None:
    (tmp_path / ADVISED_FILE).write_text(text)
    with pytest.raises(PermanentError, match="advised schedules") as raised:
        read_advised(tmp_path)
    assert "remove the file" in str(raised.value.hint)


def test_maintenance_can_be_switched_off() -> None:
    every = maintenance_entries(Config())
    without = {flow for flow, entries in every.items() if not entries}
    assert without == {"verify-restores", "rebalance-tiers", "analyse-history", "adapt-schedules"}, "not unasked"
    cold = Config.model_validate({"tiers": {"hot": "/srv/hot", "cold": "/srv/cold"}})
    assert len(maintenance_entries(cold)["rebalance-tiers"]) == 1
    proving = Config.model_validate({"maintenance": {"prove": "0 1 * * *", "prove_minutes": 90}})
    (entry,) = maintenance_entries(proving)["verify-restores"]
    assert entry.request == {"minutes": 90}
    off = Config.model_validate({"maintenance": {"recover": False, "upkeep": "off", "verify": {"interval": "7d"}}})
    some = maintenance_entries(off)
    assert [len(some[flow]) for flow in ("recover-host", "upkeep-repository", "verify-repository")] == [0, 0, 1]
    assert some["verify-repository"][0].schedule.interval == 7 * 86400


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("0 25 * * *", "outside 0-23"),
        ({"interval": "30s"}, "at least 60 s"),
        ({"cron": "0 2 * * *", "interval": "1h"}, "exactly one"),
        ({}, "exactly one"),
        ({"rrule": "FREQ=SOMETIMES"}, "not an RRULE"),
        ({"cron": "0 2 * * *", "timezone": "Mars/Olympus"}, "no such time zone"),
    ],
)
def test_wrong_schedules_are_named(schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.model_validate(schedule)


def test_schedules_adapt_by_themselves_only_when_asked_and_then_change_only_when_asked() -> None:
    for apply, action in ((False, "show"), (True, "apply")):
        maintenance = {"adapt": "0 5 * * mon", "adapt_apply": apply}
        (entry,) = maintenance_entries(Config.model_validate({"maintenance": maintenance}), "kvm1")["adapt-schedules"]
        assert entry.request == {"where": "kvm1", "action": action}
        AdaptSchedules.model_validate(entry.request)
