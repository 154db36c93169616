"""Two hosts, each with its own libvirt, back up into one repository at the same time while it is pruned and collected.

With VMCELLAR_FAULTS=1. `tests/flows/test_two_hosts.py` is the same with a Prefect worker on each.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.guest import LabGuest
from lab.otherhost import OtherHost
from lab.require import requires
from lab.waiting import wait_for
from tests.proof import subprocesses
from tests.proof.cellar import MIB, Cellar, job_runs
from tests.proof.conftest import SMALL_DISKS
from tests.proof.test_host_trouble import is_stopped, stop_at
from vmcellar.config.jobs import KeepByAge
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import gc, prune

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="set VMCELLAR_FAULTS=1"),
]


def test_two_hosts_on_one_repository(libvirt_daemons: str, vm_tmp: Path) -> None:
    assert libvirt_daemons
    requires("root")
    with ExitStack() as stack:
        guests = []
        for name in ("north", "south"):
            host = stack.enter_context(OtherHost(vm_tmp, name))
            guests.append(stack.enter_context(LabGuest(vm_tmp, SMALL_DISKS, uri=host.uri)))
            guests[-1].start(paused=True)
        cellars = [cellar_of(vm_tmp, guest) for guest in guests]
        for number, (cellar, guest) in enumerate(zip(cellars, guests, strict=True)):
            guest.poke("vda", MIB, 4 * MIB, seed=number)
            cellar.backup(guest)
            guest.poke("vda", 2 * MIB, MIB, seed=10 + number)
            cellar.backup(guest)
            guest.poke("vdb", 0, 2 * MIB, seed=20 + number)
        back_up_both(cellars, guests)


def cellar_of(folder: Path, guest: LabGuest) -> Cellar:
    """A configuration and state of the host's own; the repository is that of all."""
    (folder / "repository").mkdir(exist_ok=True)
    base = folder / f"cellar-{guest.name}"
    base.mkdir(mode=0o755)
    (base / "repository").symlink_to(folder / "repository")
    return Cellar(base, {"libvirt": {"uri": guest.uri}})


def back_up_both(cellars: list[Cellar], guests: list[LabGuest]) -> None:
    """Both stand still with their VMs held while the repository is pruned and collected without a grace time."""
    pairs = list(zip(cellars, guests, strict=True))
    expected = [cellar.reference(guest) for cellar, guest in pairs]
    running = [
        subprocesses.start(cellar, guest.name, *stop_at("vmcellar.backup.stages:export")) for cellar, guest in pairs
    ]
    try:
        for each in running:
            wait_for(lambda pid=each.pid: is_stopped(pid), "a backup to stand still", seconds=60)  # type: ignore[misc]
        assert all(job_runs(guest) for guest in guests)
        repository = Repository.open(cellars[0].config)
        decided = prune.plan(
            repository.points(), prune.rules_for_all(KeepByAge(last=1)), pins=(), now=repository.clock()
        )
        assert len(prune.drop(repository, decided)) == len(guests)
        for _ in range(2):
            gc.collect(repository, grace=0)
    finally:
        for each in running:
            os.kill(each.pid, signal.SIGCONT)
        ran = [subprocesses.finish(each) for each in running]
    for (cellar, guest), result, disks in zip(pairs, ran, expected, strict=True):
        assert result.code == 0, result
        cellar.assert_restores(result.report["point"], disks)
        assert len(cellar.points(guest)) == 2
        cellar.assert_nothing_left(guest)
