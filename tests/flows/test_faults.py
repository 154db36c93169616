"""What befalls a worker in the middle of a backup that it runs: with VMCELLAR_FAULTS=1, three minutes.

Each time no VM stays held, no job or scratch file is left, no run is `Running` once `recover-host` has run, and the
next backup is complete and restores equal.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from lab.guest import LabGuest
from lab.paths import vm_folder
from lab.prefect_server import PrefectServer
from lab.waiting import wait_for
from tests.flows.hosts import SECONDS, Site, server_settings, site
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
    with PrefectServer(tmp_path_factory.mktemp("prefect"), settings=server_settings()) as running:
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
def free(place: Site) -> None:
    """No run has a place of the host's limit; one that was killed keeps it for a minute or so."""
    wait_for(lambda: place.places() == 0, "the places of killed runs to be free again", seconds=2 * SECONDS)


@pytest.fixture
def fresh(place: Site) -> None:
    """A new worker, whose exports will stand still; none is left of the test before."""
    if place.worker is not None and place.worker.poll() is None:
        place.stop_worker(signal.SIGKILL)
    change(place.guest)
    place.hold()
    place.start_worker()


@pytest.fixture
def held(place: Site, fresh: None) -> UUID:
    """A run whose export stands still, with the VM's job running."""
    assert fresh is None
    run = place.trigger()
    place.wait_held()
    assert job_runs(place.guest)
    return run


def change(guest: LabGuest) -> None:
    """Something new for the next backup."""
    guest.poke("vda", (time.monotonic_ns() % 12) * MIB, MIB, seed=time.monotonic_ns() % 1000)


def assert_completed(place: Site, run: UUID) -> None:
    """The run that the fault befell, by itself: the guest is still, so its disks are what they were at the instant."""
    place.let_go()
    assert place.seen.ended(run, SECONDS).name == "Completed"
    place.guest._reconnect_if_cut()
    place.cellar.assert_restores(place.cellar.points(place.guest)[-1].id, place.cellar.reference(place.guest))
    place.cellar.assert_nothing_left(place.guest)


def assert_recovers(place: Site) -> None:
    """`recover-host` does its work."""
    assert place.seen.ended(place.trigger("recover-host/"), SECONDS).name == "Completed"


def assert_settled(place: Site, run: UUID, state: str) -> None:
    """After `recover-host`, which any worker of the host runs, and one more backup."""
    place.let_go()
    assert_recovers(place)
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


def test_server_killed_and_started_again(place: Site, server: PrefectServer, free: None, held: UUID) -> None:
    """The run goes on with what it finds again; its place of the host's limit is known to the new server."""
    assert free is None
    assert place.places() == 1
    server.kill()
    server.__enter__()
    assert place.places() == 1
    assert_completed(place, held)
    wait_for(lambda: place.places() == 0, "the run's place to be free again", seconds=SECONDS)
    assert_next_is_complete(place)


def test_server_gone_when_the_run_ends(place: Site, server: PrefectServer, held: UUID) -> None:
    """The point is written without it, the process leaves; `recover-host` tells the server of both once it is back."""
    server.kill()
    place.let_go()
    wait_for(lambda: not place.process_lives(), "the run's process to leave", seconds=SECONDS)
    assert not job_runs(place.guest)
    expected = place.cellar.reference(place.guest)
    (point,) = [each.id for each in place.cellar.points(place.guest)[-1:]]
    place.cellar.assert_restores(point, expected)
    server.__enter__()
    assert_settled(place, held, "Completed")


def test_libvirtd_restarts(place: Site, held: UUID) -> None:
    """The bytes come from QEMU itself; the call that ends the job connects anew."""
    place.host.restart_libvirtd()
    place.guest._reconnect_if_cut()
    assert job_runs(place.guest)
    assert_completed(place, held)
    assert_next_is_complete(place)


def test_storage_goes_away_and_comes_back(place: Site, held: UUID) -> None:
    """The run fails, as soon as it is to write there, and its VM is let go; what has landed is not left behind."""
    repository = place.cellar.base / "repository"
    away = repository.with_name("away")
    repository.rename(away)
    place.let_go()
    assert place.seen.ended(held, SECONDS).name == "Failed"
    assert not job_runs(place.guest)
    away.rename(repository)
    assert_next_is_complete(place)


def test_a_run_whose_process_died_before_its_flow_began(place: Site, server: PrefectServer, fresh: None) -> None:
    """It stays pending, as nobody is left to tell the server; a run that works for as long is left alone."""
    assert fresh is None
    died = place.trigger()
    wait_for(lambda: place.seen.state(died).type == StateType.PENDING, "the worker to take the run", seconds=SECONDS)
    place.kill_worker_with_its_runs()
    place.start_worker()
    works = place.trigger()
    place.wait_held()
    assert_recovers(place)
    assert place.seen.state(died).type == StateType.PENDING, "it may yet begin"
    for run in (died, works):
        make_older(server, run, minutes=11)
    assert_recovers(place)
    assert place.seen.state(died).name == "Crashed"
    assert "before its flow began" in place.seen.state(died).message
    assert place.seen.state(works).name == "Running"
    assert_completed(place, works)
    assert_next_is_complete(place)


def make_older(server: PrefectServer, run: UUID, minutes: int) -> None:
    """As if the run had been in its state for that much longer."""
    with closing(sqlite3.connect(server.home / "prefect.db", timeout=60)) as database, database:
        older = "strftime('%Y-%m-%d %H:%M:%f', timestamp, ?)"
        changed = database.execute(
            f"UPDATE flow_run_state SET timestamp = {older} WHERE replace(flow_run_id, '-', '') = ?",  # noqa: S608
            (f"-{minutes} minutes", run.hex),
        )
        assert changed.rowcount > 0


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
