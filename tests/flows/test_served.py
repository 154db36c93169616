"""`python -m deployments.serve` beside a real server: the form, a triggered run, Cancel, `kill -9`, SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.states import Cancelling

from deployments import registration
from flows.parameters import Recover
from flows.recover import recover_host
from lab.guest import LabGuest
from tests.flows.conftest import CellarFactory
from tests.flows.seen import Seen
from tests.flows.served import SECONDS, Served, serving
from tests.proof.cellar import MIB, Cellar, job_runs

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]


def request_for(cellar: Cellar, guest: LabGuest) -> dict[str, str]:
    return {"config": str(cellar.file), "vm": guest.name}


def test_the_form_has_a_described_field_for_each_parameter_and_what_is_paused_stays_so(
    seen: Seen, environment: dict[str, str], tmp_path: Path
) -> None:
    asyncio.run(registration.register(None, "here"))
    paused = seen.client.read_deployment_by_name("upkeep-repository/here")
    seen.client.pause_deployment(paused.id)
    with serving(seen, environment, tmp_path) as served:
        deployments = served.deployments()
    seen.client.resume_deployment(paused.id)
    for flow, deployment in deployments.items():
        assert deployment.entrypoint.startswith("flows."), flow
        assert deployment.paused == (deployment.id == paused.id), flow
        (model,) = deployment.parameter_openapi_schema["definitions"].values()
        assert all(field["description"] for field in model["properties"].values())
    vm = deployments["backup-vm"].parameter_openapi_schema["definitions"]["BackupVm"]
    assert vm["properties"]["mode"]["enum"] == ["auto", "full", "incremental", "differential"]
    assert vm["required"] == ["vm"]


def test_cancel_lets_the_vm_go_and_the_next_run_works(served: Served, cellar: Cellar, flow_guest: LabGuest) -> None:
    run = served.trigger("backup-vm", **request_for(cellar, flow_guest))
    served.wait_held()
    assert job_runs(flow_guest)
    served.seen.client.set_flow_run_state(run, Cancelling())
    assert served.seen.ended(run, SECONDS).name == "Cancelled"
    cellar.assert_let_go(flow_guest)
    served.let_go()
    again = served.trigger("backup-job", config=str(cellar.file), vms=[flow_guest.name])
    assert served.seen.ended(again, SECONDS).name == "Completed"
    (point,) = cellar.points(flow_guest)
    cellar.assert_restores(point.id, cellar.reference(flow_guest))
    restored = served.trigger(
        "restore-vm", config=str(cellar.file), point=f"{flow_guest.name}@latest", directory=str(served.folder / "out")
    )
    assert served.seen.ended(restored, SECONDS).name == "Completed"
    assert {path.name for path in (served.folder / "out").glob("*.qcow2")} == {"vda.qcow2", "vdb.qcow2", "vdc.qcow2"}


def test_after_kill_9_the_run_is_crashed_and_the_next_one_goes_on_with_it(
    served: Served, cellar: Cellar, flow_guest: LabGuest
) -> None:
    expected = cellar.reference(flow_guest)
    run = served.trigger("backup-vm", **request_for(cellar, flow_guest))
    os.kill(served.wait_held(), signal.SIGKILL)
    assert served.seen.ended(run, SECONDS).name == "Crashed"
    assert job_runs(flow_guest), "nobody could end it"
    flow_guest.poke("vda", 12 * MIB, MIB, seed=5)
    died = [path.name for path in cellar.config.state.glob("runs/*/*")]
    served.let_go()
    again = served.trigger("backup-vm", **request_for(cellar, flow_guest))
    assert served.seen.ended(again, SECONDS).name == "Completed"
    (point,) = cellar.points(flow_guest)
    assert [point.run_id] == died
    cellar.assert_restores(point.id, expected)
    cellar.assert_nothing_left(flow_guest)


def test_sigterm_to_serve_cancels_its_runs_and_pauses_nothing(
    served: Served, cellar: Cellar, flow_guest: LabGuest
) -> None:
    run = served.trigger("backup-vm", **request_for(cellar, flow_guest))
    served.wait_held()
    served.process.terminate()
    assert served.process.wait(SECONDS) == 0
    assert served.seen.state(run).name == "Cancelled"
    cellar.assert_let_go(flow_guest)
    assert not any(deployment.paused for deployment in served.deployments().values())


SETTLERS = ("recover-host", "vmcellar recover", "the next serve")


@pytest.mark.parametrize("settler", SETTLERS)
def test_a_run_whose_serve_was_killed_with_it_is_settled(
    served: Served,
    make_cellar: CellarFactory,
    libvirt_daemons: str,
    environment: dict[str, str],
    settler: str,
) -> None:
    """Whatever its flow: this one is a watch, which stands still as nobody answers its ping."""
    assert libvirt_daemons
    cellar = make_cellar()
    with socket.create_server(("127.0.0.1", 0)) as receiver:
        (cellar.base / "ping").write_text(f"http://127.0.0.1:{receiver.getsockname()[1]}/")
        off = dict.fromkeys(("recover", "watch", "upkeep", "verify"), "off")  # else later tests would serve these
        cellar = cellar.with_settings(ping={"file": str(cellar.base / "ping")}, maintenance=off)
        receiver.settimeout(SECONDS)
        run = served.trigger("watch-fleet", config=str(cellar.file))
        waiting, _ = receiver.accept()
        served.kill_with_its_runs()
        waiting.close()
    assert served.seen.state(run).name == "Running", "nobody was left to tell the server"
    configured = {**environment, "VMCELLAR_CONFIG": str(cellar.file)}
    if settler == "recover-host":
        asyncio.run(recover_host(Recover(config=str(cellar.file))))
    elif settler == "vmcellar recover":
        command = [sys.executable, "-m", "vmcellar.cli.main", "recover"]
        done = subprocess.run(command, env=configured, capture_output=True, text=True, check=True, timeout=SECONDS)
        assert f"flow run {run}: its process is gone; the server is told" in done.stderr
    else:
        with serving(served.seen, configured, served.folder):
            served.seen.ended(run, SECONDS)
    assert served.seen.state(run).name == "Crashed"
