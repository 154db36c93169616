"""A flow that is stopped: all its tasks end within seconds, and the VM is let go whenever the stop comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import flows.backup
from flows.backup import backup_vm
from flows.parameters import BackupVm
from lab.guest import LabGuest
from lab.waiting import wait_for
from tests.flows.seen import Seen
from tests.proof.cellar import Cellar, job_runs
from vmcellar.backup import stages

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]


def request_for(cellar: Cellar, guest: LabGuest) -> BackupVm:
    return BackupVm(config=str(cellar.file), vm=guest.name)


def assert_stopped(seen: Seen, cellar: Cellar, guest: LabGuest) -> None:
    assert not job_runs(guest)
    assert cellar.points(guest) == []
    state = seen.flow_run(f"backup {guest.name} auto").state
    assert state is not None
    assert not state.is_completed()


def test_exports_that_would_never_end_are_stopped(
    seen: Seen, cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages.export
    held: list[Any] = []

    def hold(*arguments: Any) -> Any:
        held.append(arguments)
        wait_for(lambda: arguments[-1].cancelled, "the stop")
        return real(*arguments)

    monkeypatch.setattr(stages, "export", hold)

    async def stopped() -> None:
        running = asyncio.create_task(backup_vm(request_for(cellar, flow_guest)))
        await asyncio.to_thread(wait_for, lambda: len(held) == flows.backup.READING, "the exports")
        assert job_runs(flow_guest)
        running.cancel()
        await running

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped())
    assert_stopped(seen, cellar, flow_guest)
    cellar.assert_let_go(flow_guest)


@pytest.mark.parametrize("stage", ["snapshot", "release", "verify"])
def test_a_stop_that_a_stage_sees_too_late(
    seen: Seen, cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The stage has done its work when the stop comes: nothing that it holds is forgotten."""
    real = getattr(stages, stage)
    running: list[Any] = []

    def late(*arguments: Any) -> Any:
        result = real(*arguments)
        loop, flow_run = running[0]
        loop.call_soon_threadsafe(flow_run.cancel)
        wait_for(flow_run.cancelling, "the stop")
        return result

    monkeypatch.setattr(stages, stage, late)

    async def stopped() -> None:
        flow_run = asyncio.create_task(backup_vm(request_for(cellar, flow_guest)))
        running.append((asyncio.get_running_loop(), flow_run))
        await flow_run

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped())
    assert_stopped(seen, cellar, flow_guest)
    cellar.assert_let_go(flow_guest)


def test_a_stop_during_commit_comes_too_late(
    seen: Seen, cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages.commit
    running: list[Any] = []

    def late(*arguments: Any) -> Any:
        loop, flow_run = running[0]
        loop.call_soon_threadsafe(flow_run.cancel)
        wait_for(flow_run.cancelling, "the stop")
        return real(*arguments)

    monkeypatch.setattr(stages, "commit", late)

    async def stopped() -> Any:
        flow_run = asyncio.create_task(backup_vm(request_for(cellar, flow_guest)))
        running.append((asyncio.get_running_loop(), flow_run))
        return await flow_run

    point = asyncio.run(stopped())
    assert [kept.id for kept in cellar.points(flow_guest)] == [point.id]
    assert seen.flow_run(f"backup {flow_guest.name} auto").state.is_completed()  # type: ignore[union-attr]  # None fails it too
    cellar.assert_nothing_left(flow_guest)
