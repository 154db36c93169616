"""docs/prefect.md, typed beside a server, a host that serves, and a run that stands still."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from lab.guest import LabGuest
from lab.prefect_server import PrefectServer
from tests.docs.playing import Scene, play
from tests.docs.terminal import Terminal
from tests.flows.served import SECONDS, Served
from tests.proof.cellar import Cellar

AUTOMATIONS = ("a backup failed", "a point or a VM looks bad")
pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]


@pytest.fixture
def terminal(
    server: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Terminal]:
    """One whose programs talk to the server of the tests."""
    made = Terminal(tmp_path / "host", monkeypatch, capsys)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    made.words["http://backup.example:4200/api"] = server.environment["PREFECT_API_URL"]
    try:
        yield made
    finally:
        made.close()


def test_prefect(terminal: Terminal, served: Served, cellar: Cellar, flow_guest: LabGuest) -> None:
    (terminal.folder / "etc/vmcellar").mkdir()
    (terminal.folder / "etc/vmcellar/vmcellar.yaml").symlink_to(cellar.file)
    terminal.words["web1"] = flow_guest.name
    host = socket.gethostname()

    def held() -> None:
        served.wait_held()
        (run,) = [each for each in served.runs("backup-vm") if each.state and each.state.is_running()]
        terminal.words["ID"] = str(run.id)

    def cancelled() -> None:
        assert served.seen.ended(UUID(terminal.words["ID"]), SECONDS).name == "Cancelled"
        cellar.assert_let_go(flow_guest)

    start = """prefect deployment run backup-vm/here --params '{"request": {"config": "/etc/vmcellar/vmcellar.yaml", "vm": "web1"}}'"""  # noqa: E501
    try:
        play(
            "prefect.md",
            terminal,
            {
                "vmcellar deploy --dry-run": Scene([f"new +backup-vm/{host}"]),
                "vmcellar deploy": Scene(),
                """prefect worker start --pool vmcellar --work-queue "$(hostname)" --type process""": Scene(
                    until="Worker .* started"
                ),
                start: Scene(["backup-vm/here"], after=held),
                "prefect flow-run cancel ID": Scene(after=cancelled),
            },
        )
    finally:
        forget(served, host)


def forget(served: Served, host: str) -> None:
    """What `deploy` made for this host would make runs that nobody takes, on the server of all tests."""
    client = served.seen.client
    for deployment in client.read_deployments():
        if deployment.name == host or deployment.name.endswith(f"@{host}"):
            client.delete_deployment(deployment.id)
    for name in AUTOMATIONS:
        for automation in client.read_automations_by_name(f"vmcellar-{host}: look at once when {name}"):
            client.delete_automation(automation.id)
