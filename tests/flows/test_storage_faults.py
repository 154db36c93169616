"""A remote tier that goes away in the middle of a backup that a worker runs: with VMCELLAR_FAULTS=1, two minutes; with
VMCELLAR_FAULTS=long also for ten minutes.

The server is moto's S3 (`lab.glacier`), the network before it `lab.faultproxy`, which resets all requests meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterState, TaskRunFilterStateName

from lab.faultproxy import FaultProxy, fault_proxy
from lab.glacier import ACCESS, SECRET, Glacier
from lab.paths import vm_folder
from lab.require import requires
from lab.waiting import wait_for
from tests.flows.hosts import SECONDS, Site, site
from tests.flows.seen import Seen
from tests.proof.cellar import MIB, job_runs

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.prefect,
    pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="two minutes: set VMCELLAR_FAULTS=1"),
]
METHODS = ("GET", "PUT", "POST", "HEAD", "DELETE")
FOR_EVER = 1_000_000


@pytest.fixture
def network() -> Iterator[FaultProxy]:
    """What lies before an S3 server with a bucket."""
    requires("glacier")
    server = Glacier.start()
    try:
        server.make_bucket("vm-backups")
        with fault_proxy(server.endpoint) as proxy:
            yield proxy
    finally:
        server.stop()


@pytest.fixture
def place(
    network: FaultProxy, seen: Seen, environment: dict[str, str], libvirt_daemons: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """A host whose repository is in that bucket, with its deployments and its worker, and a run that is held."""
    assert libvirt_daemons
    for name, value in {"LAB_ACCESS": ACCESS, "LAB_SECRET": SECRET}.items():
        monkeypatch.setenv(name, value)
        environment[name] = value
    hot: dict[str, Any] = {
        "storage": "s3://vm-backups/one",
        "endpoint": network.endpoint,
        "access_key": {"environment": "LAB_ACCESS"},
        "secret_key": {"environment": "LAB_SECRET"},
    }
    with vm_folder("storage") as folder, site(folder, "west", seen, environment, hot) as made:
        assert made.start_deploy().wait(SECONDS) == 0
        made.start_worker()
        yield made


@contextmanager
def gone(network: FaultProxy) -> Iterator[None]:
    """No request reaches the server in the block."""
    for method in METHODS:
        network.will("reset", method, times=FOR_EVER)
    try:
        yield
    finally:
        with network.lock:
            network.plan.clear()


def begin(place: Site) -> UUID:
    """A run whose export stands still."""
    place.hold()
    run = place.trigger()
    place.wait_held()
    return run


def assert_complete(place: Site) -> None:
    """The newest point is what the guest's disks are, and nothing is left behind."""
    place.cellar.assert_restores(place.cellar.points(place.guest)[-1].id, place.cellar.reference(place.guest))
    place.cellar.assert_nothing_left(place.guest)


def waits(seen: Seen) -> bool:
    """Whether a task waits to be tried again."""
    named = TaskRunFilter(state=TaskRunFilterState(name=TaskRunFilterStateName(any_=["AwaitingRetry"])))
    return bool(seen.client.read_task_runs(task_run_filter=named))


def test_storage_gone_for_less_than_a_task_is_tried_and_for_longer(place: Site, network: FaultProxy) -> None:
    short = begin(place)
    with gone(network):
        place.let_go()
        wait_for(lambda: waits(place.seen), "a task that is to be tried again", seconds=SECONDS)
        wait_for(lambda: not job_runs(place.guest), "the VM to be let go meanwhile", seconds=SECONDS)
    ended = place.seen.ended(short, SECONDS)
    assert ended.name == "Completed", ended.message
    assert_complete(place)

    place.guest.poke("vda", 3 * MIB, MIB, seed=3)
    long = begin(place)
    with gone(network):
        place.let_go()
        assert place.seen.ended(long, 3 * SECONDS).name == "Failed"
        assert not job_runs(place.guest)
    assert len(place.cellar.points(place.guest)) == 1
    assert place.seen.ended(place.trigger(), SECONDS).name == "Completed"
    assert len(place.cellar.points(place.guest)) == 2
    assert_complete(place)


@pytest.mark.timeout(1200)
@pytest.mark.skipif(os.environ.get("VMCELLAR_FAULTS") != "long", reason="twelve minutes: set VMCELLAR_FAULTS=long")
def test_storage_gone_for_ten_minutes_in_mid_backup(place: Site, network: FaultProxy) -> None:
    """Each run that meets it fails and has let the VM go. The first one after it finishes what was read before, of that
    instant; the next one is of now, and nothing is left.
    """
    # Before the run, whose job then has the one NBD server of QEMU. The guest is still, so the instant is the same.
    expected = place.cellar.reference(place.guest)
    run, failed = begin(place), 0
    with gone(network):
        place.let_go()
        back = time.monotonic() + 600
        while True:
            ended = place.seen.ended(run, 3 * SECONDS)
            assert ended.name == "Failed", ended.message
            assert not job_runs(place.guest)
            failed += 1
            if time.monotonic() >= back:
                break
            place.guest.poke("vda", failed % 16 * MIB, MIB, seed=failed)
            run = place.trigger()
    print(f"{failed} runs failed in ten minutes")
    assert place.seen.ended(place.trigger(), SECONDS).name == "Completed"
    (point,) = place.cellar.points(place.guest)
    place.cellar.assert_restores(point.id, expected)
    assert place.seen.ended(place.trigger(), SECONDS).name == "Completed"
    assert len(place.cellar.points(place.guest)) == 2
    assert_complete(place)
