"""A served flow run whose Prefect server is lost: what it waits for, and what it does without."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from tasks import control, lost, patience
from tasks.patience import PrefectLostError, patient, server_is_lost
from vmcellar.backup.model import BackupRequest, PointSummary
from vmcellar.engine import Engine

SILENT = "http://127.0.0.1:1/api"
REQUEST = BackupRequest("vm")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that Prefect made for one flow run; its server is gone, and is not waited for."""
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(uuid4()))
    monkeypatch.setenv("PREFECT_API_URL", SILENT)
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.01)
    patience._silent.clear()


async def never() -> PointSummary:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.usefixtures("served")
def test_a_request_that_would_hang_is_left() -> None:
    with pytest.raises(PrefectLostError):
        asyncio.run(patient(never()))


@pytest.mark.usefixtures("served")
def test_work_is_never_left_only_what_comes_after_it() -> None:
    """The server is lost all the time; the work is not over for a while."""

    async def working() -> str:
        for _ in range(20):
            await asyncio.sleep(0.01)
        return "done"

    assert asyncio.run(patient(working(), over=lambda: False)) == "done"


def test_a_process_that_serves_no_run_waits_as_long_as_prefect_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", SILENT)
    assert not asyncio.run(server_is_lost())


@pytest.mark.usefixtures("served")
def test_a_cancel_reaches_what_is_waited_for() -> None:
    stopped: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            stopped.append(True)

    async def cancelled() -> None:
        going = asyncio.create_task(patient(work(), over=lambda: False))
        await asyncio.sleep(0.05)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        assert stopped, "it had ended when the cancel came back"

    asyncio.run(cancelled())


@pytest.mark.usefixtures("served")
def test_a_vm_of_a_job_is_backed_up_without_a_server_that_is_gone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "engine_of", lambda _config: engine)
    point = asyncio.run(lost.or_without("", REQUEST, never()))
    assert [each.id for each in engine.repository.points_of("vm")] == [point.id]


@pytest.mark.usefixtures("served")
def test_a_vm_whose_work_is_over_has_its_point_though_the_server_hangs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "engine_of", lambda _config: engine)
    monkeypatch.setattr(lost, "server_is_lost", _there)
    with_point: Any = object()

    async def flow() -> PointSummary:
        with control.activity("", "vm") as work:
            work.point = with_point
        return await never()

    assert asyncio.run(lost.or_without("", REQUEST, flow())) is with_point


async def _there() -> bool:
    return False
