"""What befalls a worker in the middle of a backup that it runs: with VMCELLAR_FAULTS=1, a minute.

Each time no VM stays held, no job or scratch file is left, no run is `Running` once `recover-host` has run, and the
next backup is complete and restores equal.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from lab.guest import LabGuest
from lab.paths import vm_folder
from lab.prefect_server import PrefectServer
from tests.flows.hosts import SECONDS, Site, site
from tests.flows.seen import Seen
from tests.proof.cellar import MIB, job_runs

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.prefect,
    pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="a minute: set VMCELLAR_FAULTS=1"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A server of these tests alone: they kill it."""
    with PrefectServer(tmp_path_factory.mktemp("prefect")) as running:
        yield running


@pytest.fixture(scope="module")
def place(server: PrefectServer, libvirt_daemons: str) -> Iterator[Site]:
    """A host whose deployments are registered."""
    assert libvirt_daemons
    settings: dict[Any, Any] = {
        PREFECT_API_URL: server.environment["PREFECT_API_URL"],
        PREFECT_HOME: server.home,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
    }
    with ExitStack() as stack:
        stack.enter_context(temporary_settings(settings))
        seen, folder = stack.enter_context(Seen()), stack.enter_context(vm_folder("faults"))
        (folder / "repository").mkdir()
        made = stack.enter_context(site(folder, "north", seen, server.environment, folder / "repository"))
        assert made.start_deploy().wait(SECONDS) == 0
        yield made


@pytest.fixture
def held(place: Site) -> UUID:
    """A run whose export stands still, with the VM's job running; the worker is new."""
    if place.worker is not None and place.worker.poll() is None:
        place.stop_worker(signal.SIGKILL)
    change(place.guest)
    place.hold()
    place.start_worker()
    run = place.trigger()
    place.wait_held()
    assert job_runs(place.guest)
    return run


def change(guest: LabGuest) -> None:
    """Something new for the next backup."""
    guest.poke("vda", (time.monotonic_ns() % 12) * MIB, MIB, seed=time.monotonic_ns() % 1000)


def assert_settled(place: Site, run: UUID, state: str) -> None:
    """After `recover-host`, which any worker of the host runs, and one more backup."""
    place.let_go()
    assert place.seen.ended(place.trigger("recover-host/"), SECONDS).name == "Completed"
    assert place.seen.state(run).name == state
    assert_next_is_complete(place)


def assert_next_is_complete(place: Site) -> None:
    """The backup after the fault."""
    place.let_go()
    place.guest._reconnect_if_cut()
    change(place.guest)
    expected = place.cellar.reference(place.guest)
    assert place.seen.ended(place.trigger(), SECONDS).name == "Completed"
    place.cellar.assert_restores(place.cellar.points(place.guest)[-1].id, expected)
    place.cellar.assert_nothing_left(place.guest)


def test_worker_ended_by_sigterm(place: Site, held: UUID) -> None:
    """Prefect's worker kills its runs then."""
    place.stop_worker(signal.SIGTERM)
    assert place.seen.state(held).name == "Running"
    assert job_runs(place.guest), "nobody could end it"
    place.start_worker()
    assert_settled(place, held, "Crashed")


def test_worker_killed(place: Site, held: UUID) -> None:
    """Its run loses the channel to it, and stops; should it be about to commit, its point is written all the same."""
    place.stop_worker(signal.SIGKILL)
    place.let_go()
    assert place.seen.ended(held, SECONDS).name in ("Crashed", "Completed")
    place.start_worker()
    assert_settled(place, held, place.seen.state(held).name)
