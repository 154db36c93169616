"""When scheduled runs begin: windows, spread starts, catching up after an outage."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Running, Scheduled

from tasks import turns
from tasks.control import Activity, activity
from tasks.turns import Turns
from vmcellar.config.jobs import BackupJob
from vmcellar.errors import PermanentError
from vmcellar.policy.windows import delay

pytestmark = pytest.mark.prefect

TWO = datetime(2026, 11, 28, 2, 0, tzinfo=UTC)


class Clock:
    """A clock that sleeping moves."""

    def __init__(self, time: datetime) -> None:
        self.time = time

    def __call__(self) -> datetime:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def job(**settings: Any) -> BackupJob:
    return BackupJob.model_validate({"name": "nightly", **settings})


def test_a_run_outside_of_its_window_does_not_begin() -> None:
    assert Turns(job(window="03:00-04:00"), Clock(TWO)).closed == "job nightly: 02:00 is outside its window 03:00-04:00"
    assert Turns(job(window="02:00-04:00"), Clock(TWO)).closed == ""
    assert Turns(job(), Clock(TWO)).closed == ""
    assert "outside its window" in Turns(job(window="02:00-04:00"), Clock(TWO - timedelta(seconds=61))).closed


def test_a_run_that_begins_a_moment_before_its_window_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's clock is ahead of the host's: the night's backup is not skipped for that."""
    clock = Clock(TWO - timedelta(seconds=1.5))
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    made = Turns(job(window="02:00-04:00"), clock)
    assert made.closed == ""
    asyncio.run(made.wait("db1"))
    assert clock.time == TWO
    made.check("db1")


def test_each_vm_waits_for_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(TWO)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    asyncio.run(Turns(job(spread="1h"), clock).wait("db1"))
    assert (clock.time - TWO).total_seconds() == pytest.approx(delay("db1", 3600))


def test_the_spread_ends_with_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(TWO)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    made = Turns(job(spread="10h", window="02:00-03:00"), clock)
    for vm in (f"vm{number}" for number in range(50)):
        clock.time = TWO
        asyncio.run(made.wait(vm))
        made.check(vm)


def test_a_vm_whose_turn_did_not_come_in_time_is_an_error() -> None:
    clock = Clock(TWO)
    made = Turns(job(window="02:00-03:00"), clock)
    made.check("db1")
    clock.time = TWO + timedelta(hours=1)
    with pytest.raises(PermanentError, match="db1: not begun: the window 02:00-03:00 of job nightly ended"):
        made.check("db1")


def at_the_end(monkeypatch: pytest.MonkeyPatch, read: int, **settings: Any) -> Activity:
    """The activity of a backup that had read so many of 10 bytes when its window ended."""
    yield_once = asyncio.sleep
    clock = Clock(TWO + timedelta(minutes=30))
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)

    async def backup() -> Activity:
        with activity("", "db1") as work:
            work.begin(10)
            async with Turns(job(window="02:00-03:00", **settings), clock).until_closed("", "db1"):
                work.progress("export", read)
                await yield_once(0)  # the watcher sleeps until the end now, which takes no time
                work.cancel.check()
        return work

    return asyncio.run(backup())


def test_at_the_end_of_its_window_a_backup_that_reads_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermanentError, match="db1: stopped while it was read: the window 02:00-03:00 of job nightly"):
        at_the_end(monkeypatch, 9, after_window="stop")


@pytest.mark.parametrize(("read", "then"), [(9, "run"), (9, "1MiB/s"), (10, "stop")])
def test_one_that_has_read_all_or_may_go_on_is_not(monkeypatch: pytest.MonkeyPatch, read: int, then: str) -> None:
    assert not at_the_end(monkeypatch, read, after_window=then).cancel.cancelled


def run(due: datetime, begun: datetime | None = None) -> FlowRun:
    state: State[Any] = Running() if begun else Scheduled(scheduled_time=due)
    values = {"id": uuid4(), "flow_id": uuid4(), "name": f"due {due:%H:%M}", "expected_start_time": due}
    made = FlowRun.model_validate({**values, "start_time": begun})
    made.state, made.state_type = state, state.type
    return made


def hour(number: int) -> datetime:
    return TWO.replace(hour=number)


def test_after_an_outage_only_the_newest_run_works() -> None:
    """Three runs came due while nothing ran; all begin at six."""
    missed = [run(hour(2)), run(hour(3)), run(hour(4))]
    working = [
        each.name for each in missed if not turns._why(each, [other for other in missed if other is not each], hour(6))
    ]
    assert working == ["due 04:00"]


def test_so_it_is_when_the_older_ones_have_begun_a_moment_earlier() -> None:
    older = run(hour(2), begun=hour(6))
    newest = run(hour(3))
    assert turns._why(older, [newest], hour(6)) != ""
    assert turns._why(newest, [older], hour(6)) == "", "else none would work"


def test_a_run_of_a_whole_job_leaves_its_turn_to_another_of_it_and_one_for_some_vms_does_not() -> None:
    """As one that an automation began, which knows nothing of VMs with schedules of their own."""
    whole, rest, some, hand, other = (
        FlowRun(flow_id=uuid4(), parameters={"request": request})
        for request in (
            {"job": "nightly", "scheduled": True},
            {"job": "nightly", "scheduled": True, "except_vms": ["db1"]},
            {"job": "nightly", "scheduled": True, "vms": ["db1"]},
            {"job": "nightly"},
            {"job": "weekly", "scheduled": True},
        )
    )
    assert turns._is_same_work(whole, rest)
    assert turns._is_same_work(rest, whole)
    assert turns._is_same_work(some, some)
    assert not any(turns._is_same_work(whole, one) for one in (some, hand, other))
    assert not any(turns._is_same_work(hand, one) for one in (whole, some))


def test_a_run_is_left_out_while_the_one_before_it_goes_on() -> None:
    assert "still goes on" in turns._why(run(hour(3)), [run(hour(2), begun=hour(2))], hour(3))
    assert turns._why(run(hour(3)), [run(hour(4))], hour(3)) == "", "one that is not yet due is nothing to wait for"


def test_hundreds_of_runs_to_come_do_not_hide_the_one_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where many VMs of a job have schedules of their own; the server gives 200 at a time, the newest first."""
    begun, own = run(hour(2), begun=hour(2)), run(hour(3))
    own.deployment_id = uuid4()
    runs = [run(datetime.now(UTC) + timedelta(days=1)) for _ in range(300)] + [begun]

    class Server:
        async def __aenter__(self) -> Server:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def read_flow_runs(self, *, flow_run_filter: FlowRunFilter, **_: object) -> list[FlowRun]:
            due = flow_run_filter.expected_start_time
            last = due.before_ if due and due.before_ else datetime.max.replace(tzinfo=UTC)
            return [one for one in runs if (one.expected_start_time or last) <= last][:200]

    monkeypatch.setattr(turns, "get_client", Server)
    monkeypatch.setattr(turns, "FlowRunContext", SimpleNamespace(get=lambda: SimpleNamespace(flow_run=own)))
    monkeypatch.setattr("tasks.runrecords.living", lambda _state: {str(begun.id)})
    assert "still goes on" in asyncio.run(turns.superseded(tmp_path))
