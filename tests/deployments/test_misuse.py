"""Wrong addresses, hosts and files: said so, where silence would be taken for all being well. No server."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Running
from prometheus_client import CollectorRegistry, generate_latest

from deployments import draining, serve
from deployments.drained import read
from tasks.queue import QueueCollector, asking
from tasks.runrecords import Record, _write, folder_of
from tasks.server import answers
from vmcellar.cli.commands.deploy import _agreed
from vmcellar.errors import PermanentError, UsageError


@pytest.fixture
def mumbling() -> Iterator[str]:
    """The address of a server that speaks something else than HTTP, as SSH's does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def mumble() -> None:
            while True:
                try:
                    met, _ = listening.accept()
                except OSError:
                    return
                with met:
                    met.recv(1024)
                    met.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")

        threading.Thread(target=mumble, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("url", ["http://host:port/api", "http://[::1", "http://a b/api", "http://\u20ac.example/api"])
def test_an_address_that_is_none_does_not_answer(url: str) -> None:
    """So a backup goes on without, and says so."""
    assert not answers(url)
    registry = CollectorRegistry()
    registry.register(QueueCollector(asking(url)))
    assert b"vmcellar_prefect_up 0.0" in generate_latest(registry)


def test_what_speaks_no_http_does_not_answer(mumbling: str) -> None:
    assert not answers(mumbling)


def test_a_host_that_the_server_does_not_know_is_not_said_to_be_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(_where: str) -> dict[str, object]:
        return {}

    monkeypatch.setattr(draining, "deployed", none)
    with pytest.raises(PermanentError, match=r"no deployments of kvm99.*nothing was paused"):
        asyncio.run(draining.pause(tmp_path, "kvm99"))
    assert read(tmp_path) is None


def test_a_run_that_is_served_and_holds_no_vm_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`deployments.serve` starts its runs by `spawn`: unlike a worker's, their environment tells nothing."""
    restoring, killed = (
        FlowRun(id=uuid4(), flow_id=uuid4(), name=name, state=Running()) for name in ("restoring", "killed")
    )

    class Server:
        async def __aenter__(self) -> Server:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def read_flow_runs(self, **_: object) -> list[FlowRun]:
            return [restoring, killed]

    monkeypatch.setattr(draining, "get_client", Server)
    folder_of(tmp_path).mkdir()
    record = _write(folder_of(tmp_path) / f"{restoring.id}.json", Record(str(restoring.id), "", 1))
    assert asyncio.run(draining.running("here", tmp_path)) == ["restoring"]
    os.close(record)
    assert asyncio.run(draining.running("here", tmp_path)) == []


def test_a_named_file_that_is_not_there_is_not_served_without_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VMCELLAR_CONFIG", str(tmp_path / "vmcelar.yaml"))
    with pytest.raises(UsageError, match="no such file"):
        serve._config()
    monkeypatch.delenv("VMCELLAR_CONFIG")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vmcellar.config.load.SYSTEM_FILE", tmp_path / "none.yaml")
    assert serve._config() is None
    assert "no jobs" in capsys.readouterr().err


def test_with_json_nothing_is_asked_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    plan: object = SimpleNamespace(gone=[("backup-job/old", None)])
    with pytest.raises(UsageError, match="would be removed"):
        _agreed(plan, False, ask=False)  # type: ignore[arg-type]  # as much of a plan as is looked at
