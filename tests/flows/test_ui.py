"""What people see: the form of a deployment and the graph of a run, in a real browser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.wanted import wanted
from flows.backup import backup_vm
from flows.parameters import BackupVm
from lab.guest import LabGuest
from lab.prefect_server import PrefectServer
from lab.require import requires
from lab.waiting import wait_for
from tests.flows.browser import Browser
from tests.flows.seen import Seen
from tests.proof.cellar import Cellar

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect, pytest.mark.browser]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    requires("chromium")
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


def test_the_form_of_a_backup(server: PrefectServer, seen: Seen, browser: Browser) -> None:
    (made,) = [each for each in wanted(None) if each.flow.name == "backup-vm"]
    identity = asyncio.run(made.deployment().aapply())
    browser.open(f"{address(server)}/deployments/deployment/{identity}/run")
    text = browser.wait_text("Back up one VM.", "Exclude Disks", "Submit")
    for field in BackupVm.model_fields.values():
        assert str(field.description) in text
    for mode in ("auto", "full", "incremental"):
        assert mode in text.splitlines()
    assert seen.client.read_deployment(identity).entrypoint == "flows.backup.backup_vm"


def test_the_graph_and_the_report_of_a_run(
    server: PrefectServer, seen: Seen, browser: Browser, cellar: Cellar, flow_guest: LabGuest, tmp_path: Path
) -> None:
    asyncio.run(backup_vm(BackupVm(config=str(cellar.file), vm=flow_guest.name)))
    run = seen.flow_run(f"backup {flow_guest.name} auto")
    names = [f"release {flow_guest.name}", f"commit {flow_guest.name}"]
    seen.tasks(run, names)
    browser.open(f"{address(server)}/runs/flow-run/{run.id}")
    browser.wait_text(run.name, "Completed", "Artifacts", "Task Runs")
    wait_for(lambda: browser.value("document.querySelectorAll('canvas').length"), "the graph")
    browser.picture(tmp_path / "run.png")
    browser.click("Task Runs")
    browser.wait_text(*names)
    browser.click("Artifacts")
    browser.wait_text(f"backup-{flow_guest.name}")


def address(server: PrefectServer) -> str:
    return server.environment["PREFECT_API_URL"].removesuffix("/api")
