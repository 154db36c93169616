"""`python -m deployments.serve` beside a real server: the form, a triggered run, Cancel, `kill -9`, SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from lab.guest import LabGuest
from lab.waiting import wait_for
from tests.flows.seen import Seen
from tests.proof.cellar import MIB, Cellar, job_runs

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]

HOLD = Path(__file__).with_name("hold")
SECONDS = 60
FLOWS = ("backup-vm", "backup-job", "restore-vm", "thaw-point", "verify-repository", "rebalance-tiers", "recover-host")


@dataclass
class Served:
    """A running `deployments.serve`; the exports of its flow runs stand still until `go` is there."""

    process: subprocess.Popen[bytes]
    folder: Path
    seen: Seen

    def trigger(self, flow: str, **request: Any) -> UUID:
        """Start a run as the UI does."""
        deployment = self.seen.client.read_deployment_by_name(f"{flow}/here")
        made = self.seen.client.create_flow_run_from_deployment(deployment.id, parameters={"request": request})
        return made.id

    def wait_held(self) -> int:
        """Wait until an export stands still; the id of the flow run's process."""
        held = self.folder / "held"
        text = wait_for(lambda: held.exists() and held.read_text(), "an export", seconds=SECONDS)
        held.unlink()
        return int(text)

    def let_go(self) -> None:
        """No export of a later run stands still."""
        (self.folder / "go").touch()

    def deployments(self) -> dict[str, Any]:
        """Those that are registered, by flow."""
        found = {}
        for flow in FLOWS:
            try:
                found[flow] = self.seen.client.read_deployment_by_name(f"{flow}/here")
            except ObjectNotFound:
                return {}
        return found


@pytest.fixture
def served(seen: Seen, environment: dict[str, str], tmp_path: Path) -> Iterator[Served]:
    """Started anew for each test, from a folder that is not the checkout."""
    more = {
        "PYTHONPATH": str(HOLD),
        "FLOW_TEST_HOLD": str(tmp_path),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.serve"],
            cwd=tmp_path,
            env={**environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        made = Served(process, tmp_path, seen)
        try:
            wait_for(made.deployments, "the deployments", seconds=SECONDS)
            yield made
        finally:
            process.terminate()
            process.wait(SECONDS)


def request_for(cellar: Cellar, guest: LabGuest) -> dict[str, str]:
    return {"config": str(cellar.file), "vm": guest.name}


def test_the_form_has_a_described_field_for_each_parameter(served: Served) -> None:
    for flow, deployment in served.deployments().items():
        assert deployment.entrypoint.startswith("flows."), flow
        assert not deployment.paused
        (model,) = deployment.parameter_openapi_schema["definitions"].values()
        assert all(field["description"] for field in model["properties"].values())
    vm = served.deployments()["backup-vm"].parameter_openapi_schema["definitions"]["BackupVm"]
    assert vm["properties"]["mode"]["enum"] == ["auto", "full", "incremental"]
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
