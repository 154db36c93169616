"""What people see: the form of a deployment and the graph of a run, in a real browser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from deployments.wanted import wanted
from flows.backup import backup_vm
from flows.parameters import BackupVm, DrillPoint, RestoreVm
from flows.restore import restore_vm
from flows.verify import drill_point
from lab.browser import Browser
from lab.guest import LabGuest
from lab.prefect_server import PrefectServer
from lab.require import requires
from lab.waiting import wait_for
from tests.flows.seen import Seen
from tests.flows.served import Served
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
    text = browser.wait_text("Back up one VM.", "Disks to leave out", "Submit")
    places = [text.index("VM\n"), *(text.index(f"{name} (Optional)") for name in ("Mode", "Job", "Configuration file"))]
    assert places == sorted(places)
    for field in BackupVm.model_fields.values():
        assert str(field.description).replace("`", "") in text
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


def test_an_operator_starts_a_backup_from_the_form_sees_it_succeed_and_cancels_another(
    server: PrefectServer, served: Served, browser: Browser, cellar: Cellar, flow_guest: LabGuest
) -> None:
    form = f"{address(server)}/deployments/deployment/{served.deployments()['backup-vm'].id}/run"

    def start() -> UUID:
        before = {run.id for run in served.runs("backup-vm")}
        browser.open(form)
        browser.wait_text("the VM's name in libvirt", "Submit")
        browser.fill("Configuration file (Optional)", str(cellar.file))
        browser.fill("VM", flow_guest.name)
        wait_for(lambda: submitted(browser), "the form to be taken", pause=1)
        (made,) = wait_for(lambda: [r for r in served.runs("backup-vm") if r.id not in before], "the run") or []
        return UUID(str(made.id))

    cancelled = start()
    served.wait_held()
    browser.open(f"{address(server)}/runs/flow-run/{cancelled}")
    browser.wait_text("Running", "Suspend")
    browser.click("Cancel")
    browser.click("Confirm")
    assert served.seen.ended(cancelled).name == "Cancelled"
    cellar.assert_let_go(flow_guest)
    assert cellar.points(flow_guest) == []

    served.let_go()
    done = start()
    assert served.seen.ended(done).name == "Completed"
    browser.open(f"{address(server)}/runs/flow-run/{done}")
    browser.wait_text(f"backup {flow_guest.name} auto", "Completed")
    (point,) = cellar.points(flow_guest)
    cellar.assert_restores(point.id, cellar.reference(flow_guest))


@pytest.mark.guest
def test_links_lead_from_each_report_of_a_vm_to_the_others_and_back(
    server: PrefectServer, seen: Seen, browser: Browser, cellar: Cellar, flow_guest: LabGuest, tmp_path: Path
) -> None:
    """Pressed with the mouse; they open in a new tab. The report of the backup was there before the others."""
    vm, config = flow_guest.name, str(cellar.file)
    point = asyncio.run(backup_vm(BackupVm(config=config, vm=vm))).id
    made = seen.artifacts(seen.flow_run(f"backup {vm} auto"))[f"backup-{vm}"]
    asyncio.run(drill_point(DrillPoint(config=config, point=point)))
    asyncio.run(restore_vm(RestoreVm(config=config, point=point, directory=str(tmp_path / "out"))))
    pages = {
        "backup": f"{vm}: full point {point}",
        "drill": f"{vm}: drill of point {point} passed",
        "restore": f"{vm}: point {point} restored",
    }
    browser.open(f"{address(server)}/artifacts/artifact/{made.id}")
    browser.wait_text(pages["backup"])
    for link in ("drill", "backup", "restore", "drill", "restore", "backup"):
        browser.follow(link)
        browser.wait_text(pages[link], "Show raw data")


def submitted(browser: Browser) -> bool:
    """Whether the form has been left; presses its button, which does nothing while what was typed is not taken in."""
    if str(browser.value("location.pathname")).endswith("/run"):
        browser.click("Submit")
        return False
    return True


def address(server: PrefectServer) -> str:
    return server.environment["PREFECT_API_URL"].removesuffix("/api")
