"""VMs of a host on which nothing of ours runs, as jobs of a worker on another one: with VMCELLAR_FAULTS=1.

As docs/remote-hosts.md has it: `vmcellar deploy --host far` and a worker of that queue on the backup host, which
reaches libvirt by SSH and the disks by NBD over TLS. `tests/proof/test_remote.py` is the same without Prefect.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lab.otherhost import OtherHost
from lab.paths import vm_folder
from tests.flows.hosts import JOB, SECONDS, Site, held_on
from tests.flows.seen import Seen
from tests.proof.cellar import MIB, Cellar, job_runs
from tests.proof.far import Far, far_host

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.prefect,
    pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="half a minute: set VMCELLAR_FAULTS=1"),
]


@pytest.fixture
def far(libvirt_daemons: str) -> Iterator[Far]:
    """The host with the VM."""
    assert libvirt_daemons
    with vm_folder("remote") as folder, far_host(folder) as made:
        yield made


@pytest.fixture
def place(far: Far, seen: Seen, environment: dict[str, str]) -> Iterator[Site]:
    """The backup host, with the deployments for the other one and their worker."""
    backups = [{"name": JOB, "domains": [far.guest.name]}]
    settings = {**far.settings(), "limits": {"segment": 4 * MIB}, "backups": backups}
    with OtherHost(far.folder, "backup1") as host:
        cellar = Cellar(far.folder / "cellar", settings)
        made = Site(host, far.guest, cellar, seen, held_on(host, environment), queue=far.host.name)
        assert made.start_deploy().wait(SECONDS) == 0
        made.start_worker()
        yield made


def test_a_full_one_killed_and_an_incremental_restore_to_every_byte(place: Site, far: Far) -> None:
    first = place.cellar.reference(far.guest)
    run = place.trigger()
    place.wait_held()
    assert job_runs(far.guest)
    assert list(far.scratch.iterdir()) != []
    assert place.places() == 1, "of the backup host's limit, which all its configurations share"
    place.let_go()
    assert place.seen.ended(run, SECONDS).name == "Completed"
    (full,) = place.cellar.points(far.guest)
    place.cellar.assert_restores(full.id, first)
    far.assert_nothing_left(place.cellar)

    far.guest.poke("vda", 2 * MIB, MIB, seed=2)
    place.hold()
    killed = place.trigger()
    place.wait_held()
    place.kill_worker_with_its_runs()
    assert job_runs(far.guest), "nobody could end it"
    place.let_go()
    place.start_worker()
    assert place.seen.ended(place.trigger("recover-host/"), SECONDS).name == "Completed"
    assert place.seen.state(killed).name == "Crashed"
    far.assert_nothing_left(place.cellar)

    far.guest.poke("vdb", 0, 256 << 10, seed=3)
    second = place.cellar.reference(far.guest)
    assert place.seen.ended(place.trigger(), SECONDS).name == "Completed"
    points = place.cellar.points(far.guest)
    assert [point.parent for point in points] == [None, full.id]
    place.cellar.assert_restores(full.id, first)
    place.cellar.assert_restores(points[1].id, second)
    place.cellar.assert_nothing_left(far.guest)
    far.assert_nothing_left(place.cellar)
