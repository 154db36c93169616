"""Fixtures of the flows' tests: one real Prefect server for all, a small quiet guest, a vmcellar of each test's own."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import Task
from prefect.logging.handlers import APILogHandler
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOGGING_LEVEL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)

from lab.guest import LabGuest
from lab.paths import vm_folder
from lab.prefect_server import PrefectServer
from tasks import backup, restore
from tests.flows.seen import Seen
from tests.flows.served import Served, serving
from tests.proof.cellar import MIB, Cellar, job_runs
from tests.proof.conftest import SMALL_DISKS

CellarFactory = Callable[..., Cellar]
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Prefect leaves sockets to its server for the garbage collector to close."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A real server on loopback, as a process of its own; every flow of this session runs against it."""
    with PrefectServer(tmp_path_factory.mktemp("prefect")) as running:
        yield running
        asyncio.run(APILogHandler.aflush())  # it would complain of a server that is gone


@pytest.fixture
def seen(server: PrefectServer) -> Iterator[Seen]:
    """What the server has seen; flows that run in this process talk to that server meanwhile."""
    settings: dict[Any, Any] = {
        PREFECT_API_URL: server.environment["PREFECT_API_URL"],
        PREFECT_HOME: server.home,
        PREFECT_LOGGING_LEVEL: "WARNING",
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
    }
    with temporary_settings(settings), Seen() as what:
        yield what
    gc.collect()  # Prefect's forgotten sockets are warned about here, where that is let pass, and not in a later test


@pytest.fixture
def environment(server: PrefectServer) -> dict[str, str]:
    """The environment of a process that uses the server, and can import the project from anywhere."""
    return {**os.environ, **server.environment}


@pytest.fixture
def served(seen: Seen, environment: dict[str, str], tmp_path: Path) -> Iterator[Served]:
    """`deployments.serve`, started anew for each test."""
    with serving(seen, environment, tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def shared_guest(libvirt_daemons: str) -> Iterator[LabGuest]:
    """A running domain in which no guest code runs, with 10 MiB of data on its first disk and 2 MiB on another; tests
    change no more than that.
    """
    assert libvirt_daemons
    with vm_folder("flows") as folder, LabGuest(folder, SMALL_DISKS) as guest:
        guest.start(paused=True)
        guest.poke("vda", MIB, 10 * MIB, seed=1)
        guest.poke("vdb", 0, 2 * MIB, seed=2)
        yield guest


@pytest.fixture
def flow_guest(shared_guest: LabGuest) -> Iterator[LabGuest]:
    """The same; a test that fails leaves no backup job for the next one."""
    yield shared_guest
    if job_runs(shared_guest):
        shared_guest.domain.abortJob()


@pytest.fixture
def make_cellar(vm_tmp: Path) -> CellarFactory:
    """Call it with a name and sections of the configuration; segments are so small that a disk has several."""

    def make(name: str = "cellar", **settings: object) -> Cellar:
        return Cellar(vm_tmp / name, {"limits": {"segment": 4 * MIB}, **settings})

    return make


@pytest.fixture
def cellar(make_cellar: CellarFactory) -> Cellar:
    """A cellar with the default settings."""
    return make_cellar()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the wait before them."""
    for module in (backup, restore):
        for task in [value for value in vars(module).values() if isinstance(value, Task)]:
            monkeypatch.setattr(task, "retry_delay_seconds", 0)
            monkeypatch.setattr(task, "retry_jitter_factor", None)
