"""Scheduled work that fails is told of, also where it is of no VM that has a run in the catalog. No server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.states import Running

import flows.backup as flow
from flows.parameters import BackupJob, Watch
from tasks import failures, runrecords
from tasks.failures import FILE, failed_work, told_of
from tasks.runrecords import Record, _tell, recorded
from tasks.turns import Turns
from tests.backup.world import make_engine
from tests.cli.conftest import quick_cost
from vmcellar.backup.model import BackupRequest
from vmcellar.catalog.conditions import conditions
from vmcellar.catalog.metrics import standing
from vmcellar.config import jobs
from vmcellar.engine import Engine
from vmcellar.errors import IntegrityError, PermanentError, TransientError

DAMAGED = IntegrityError("3 damaged objects", hint="`vmcellar verify --all --deep` lists them")
SAMPLE = {"request": {"deep": True, "sample": 0.05}}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    made = make_engine(tmp_path)
    job = jobs.BackupJob.model_validate({"name": "nightly", "window": "02:00-04:00"})
    made.config = made.config.model_copy(update={"backups": (job,)})
    monkeypatch.setattr(flow, "engine_of", lambda _config: made)
    return made


def told(state: Path) -> list[str]:
    return [f"{each.key}: {each.text}" for each in failed_work(state)]


def test_a_scheduled_run_that_failed_is_told_until_one_like_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = SimpleNamespace(state=tmp_path, end=lambda *_: None)
    monkeypatch.setattr(runrecords, "_begin", lambda _config: kept)

    def ran(name: str, parameters: dict[str, Any], error: Exception | None, *, scheduled: bool) -> None:
        one = SimpleNamespace(auto_scheduled=scheduled, parameters=parameters)
        context = SimpleNamespace(flow=SimpleNamespace(name=name), flow_run=one)
        monkeypatch.setattr(failures, "FlowRunContext", SimpleNamespace(get=lambda: context))

        async def body(_request: Watch) -> None:
            if error is not None:
                raise error

        try:
            asyncio.run(recorded(body)(Watch()))
        except IntegrityError as raised:
            assert raised is error

    ran("restore-vm", {}, DAMAGED, scheduled=True)
    ran("verify-repository", {"request": {"point": "p"}}, DAMAGED, scheduled=False)
    assert told(tmp_path) == [], "who starts a run by hand sees what comes of it"
    ran("verify-repository", SAMPLE, DAMAGED, scheduled=True)
    text = "verify-repository failed: verify-repository: 3 damaged objects `vmcellar verify --all --deep` lists them"
    assert told(tmp_path) == [text]
    ran("verify-repository", {"request": {"point": "p"}}, None, scheduled=False)
    ran("upkeep-repository", {}, None, scheduled=True)
    assert told(tmp_path) == [text], "something else went well"
    ran("verify-repository", SAMPLE, None, scheduled=False)
    assert told(tmp_path) == [], "the same, by Retry or Duplicate in the UI"


@pytest.mark.parametrize(
    ("name", "scheduled", "count"),
    [("upkeep-repository", True, 1), ("upkeep-repository", False, 0), ("restore-vm", True, 0)],
)
def test_scheduled_work_whose_process_was_killed_is_told_of(
    tmp_path: Path, name: str, scheduled: bool, count: int
) -> None:
    run = SimpleNamespace(
        id=uuid4(), flow_id=uuid4(), state=Running(), run_count=1, auto_scheduled=scheduled, parameters={}
    )

    class Server:
        async def read_flow_run(self, _id: UUID) -> Any:
            return run

        async def read_flow(self, _id: UUID) -> Any:
            return SimpleNamespace(name=name)

        async def read_task_runs(self, **_: object) -> list[Any]:
            return []

        async def set_flow_run_state(self, *_: object, **__: object) -> None:
            pass

    server: Any = Server()
    assert asyncio.run(_tell(server, Record(str(run.id), "", 1), tmp_path))
    assert [text.split(":")[0] for text in told(tmp_path)] == [f"{name} failed"] * count


def test_a_file_that_cannot_be_read_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"{")
    assert told(tmp_path) == []
    with pytest.raises(TransientError), told_of(tmp_path, "job nightly"):
        raise TransientError("libvirt does not answer")
    assert told(tmp_path) == ["job nightly failed: job nightly: libvirt does not answer"]


def test_a_job_whose_vms_cannot_be_asked_for_is_told_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = BackupJob(job="nightly", scheduled=True)
    monkeypatch.setattr(Turns, "closed", "")

    def down(*_: object, **__: object) -> None:
        raise TransientError("libvirt does not answer")

    monkeypatch.setattr(flow, "select", down)
    with pytest.raises(TransientError):
        asyncio.run(flow.backup_job.fn(request))
    assert told(engine.state) == ["job nightly failed: job nightly: libvirt does not answer"]
    monkeypatch.setattr(flow, "select", lambda *_, **__: SimpleNamespace(without=lambda _vms: None))
    monkeypatch.setattr(asyncio, "Semaphore", _stop)
    with pytest.raises(RuntimeError):
        asyncio.run(flow.backup_job.fn(request))
    assert told(engine.state) == []


def _stop(_places: int) -> None:
    raise RuntimeError("the VMs were chosen")


def test_a_vm_whose_turn_did_not_come_and_one_that_never_ran_are_told_of(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns(engine.config.backups[0])
    monkeypatch.setattr("tasks.turns.seconds_left", lambda *_: 0.0)
    with pytest.raises(PermanentError, match="ended before its turn"):
        asyncio.run(flow._begun_in_time(turns, engine, BackupRequest("late", job="nightly")))
    asyncio.run(flow._off(engine, "nightly", ("off",)))
    found = conditions(standing(engine.catalog), engine.config.backups, engine.repository.clock())
    assert {each.key for each in found} == {
        "late: no point", "late: backup failed", "off: no point", "off: backup failed",
    }  # fmt: skip
