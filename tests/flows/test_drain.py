"""`vmcellar drain` on a real server: no new work, what runs may end, what people paused stays paused."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from prefect import flow
from prefect.states import Pending, Running
from typer.testing import CliRunner

from deployments import draining, pools, registration
from lab.guest import LabGuest
from lab.prefect_server import PrefectServer
from tasks.runrecords import Record, _write, folder_of
from tests.flows.seen import Seen
from tests.flows.served import SECONDS, Served
from tests.proof.cellar import Cellar
from vmcellar.cli.main import app
from vmcellar.errors import PermanentError, TransientError

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]


@pytest.fixture(autouse=True)
def address(server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.environment["PREFECT_API_URL"])


def drain(cellar: Cellar, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["--config", str(cellar.file), "drain", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_host_that_serves_is_drained_when_its_run_has_ended(
    served: Served, cellar: Cellar, flow_guest: LabGuest
) -> None:
    theirs = served.deployments()["restore-vm"].id
    served.seen.client.pause_deployment(theirs)
    run = served.trigger("backup-vm", config=str(cellar.file), vm=flow_guest.name)
    served.wait_held()
    with pytest.raises(
        TransientError, match=rf"not safe yet: run backup {flow_guest.name} auto, VM {flow_guest.name} \("
    ):
        drain(cellar, "--wait", "0s")
    assert all(each.paused for each in served.deployments().values())
    assert served.seen.state(run).is_running(), "it is not stopped"
    served.let_go()
    assert "safe to shut this host down" in drain(cellar, "--wait", "5m")
    assert served.seen.ended(run, SECONDS).is_completed()
    assert len(cellar.points(flow_guest)) == 1

    assert "takes work again" in drain(cellar, "--end")
    assert [each.id for each in served.deployments().values() if each.paused] == [theirs]
    assert "was not drained" in drain(cellar, "--end")
    served.seen.client.resume_deployment(theirs)


def test_the_queue_of_a_worker_is_paused_and_its_deployments_are_not(seen: Seen, cellar: Cellar) -> None:
    asyncio.run(pools.ensure("vmcellar", "kvm5"))
    asyncio.run(registration.apply(_plan(cellar, "kvm5"), cellar.config))
    for _ in range(2):  # it may be repeated
        assert "1 queues and 0 deployments of kvm5 are paused" in drain(cellar, "--host", "kvm5")
        assert seen.client.read_work_queue_by_name("kvm5", "vmcellar").is_paused
    drain(cellar, "--end")
    assert not seen.client.read_work_queue_by_name("kvm5", "vmcellar").is_paused


def _plan(cellar: Cellar, host: str) -> registration.Plan:
    options = pools.options("vmcellar", host, cellar.file)
    return asyncio.run(registration.plan(cellar.config, host, **options))


def test_a_run_without_a_process_is_not_waited_for(seen: Seen, tmp_path: Path) -> None:
    @flow(name="ghost")
    def ghost() -> None:
        """Nobody runs it."""

    tags = ["vmcellar", "vmcellar-kvm6"]
    made = [
        seen.client.create_flow_run(ghost, name="killed", tags=tags, state=Running()),
        seen.client.create_flow_run(ghost, name="being started", tags=tags, state=Pending()),
        seen.client.create_flow_run(ghost, name="restoring", tags=tags, state=Running()),
    ]
    folder_of(tmp_path).mkdir()
    served = made[2].id  # its environment does not tell it, and it holds no VM: its record does
    record = _write(folder_of(tmp_path) / f"{served}.json", Record(str(served), "", 1))
    try:
        assert sorted(asyncio.run(draining.running("kvm6", tmp_path))) == ["being started", "restoring"]
    finally:
        os.close(record)
        for each in made:
            seen.client.delete_flow_run(each.id)


def test_without_a_server_nothing_is_said_to_be_safe(cellar: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    with pytest.raises(PermanentError, match="does not answer: nothing was paused"):
        drain(cellar)
