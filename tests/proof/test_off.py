"""VMs that are off: started paused, read, and stopped again unless somebody let them run meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Callable

import libvirt
import pytest

from lab.guest import LabGuest
from lab.waiting import wait_for
from tests.proof import subprocesses
from tests.proof.cellar import MIB, Cellar, at_instant, checkpoints, job_runs
from tests.proof.conftest import SMALL_DISKS, CellarFactory
from vmcellar.backup import recover
from vmcellar.backup.selection import select
from vmcellar.errors import PermanentError

pytestmark = pytest.mark.libvirt

PCI = (
    "<hostdev mode='subsystem' type='pci' managed='no'>"
    "<source><address domain='0x0000' bus='0x3f' slot='0x1d' function='0x0'/></source></hostdev>"
)


@pytest.fixture
def off(make_guest: Callable[..., LabGuest]) -> LabGuest:
    """A guest that never ran, with four megabytes on each disk."""
    guest = make_guest(SMALL_DISKS)
    change(guest, seed=1)
    return guest


def change(guest: LabGuest, seed: int) -> None:
    """Start it, overwrite, zero and discard, and have it off again."""
    guest.start(paused=True)
    for number, target in enumerate(guest.disks):
        guest.poke(target, MIB, 4 * MIB, seed=seed + number)
        guest.poke_zero(target, 2 * MIB, MIB // 2)
        guest.poke_discard(target, 3 * MIB, MIB // 2)
    guest.destroy()


def test_a_vm_that_is_off_is_backed_up_incrementally_and_is_off_again(off: LabGuest, cellar: Cellar) -> None:
    expected = cellar.reference(off)
    first = cellar.backup(off, start_paused=True)
    assert not off.domain.isActive()
    assert (first.kind, first.verified) == ("full", True)
    assert cellar.point(first).consistency == "crash"
    cellar.assert_restores(first.id, expected)
    for seed in (10, 20, 30, 40):
        change(off, seed)
        expected = cellar.reference(off)
        point = cellar.backup(off, start_paused=True)
        assert (point.kind, off.domain.isActive()) == ("incremental", 0)
        cellar.assert_restores(point.id, expected)
        assert cellar.leftovers() == []
    unchanged = cellar.backup(off, start_paused=True)
    assert (unchanged.kind, unchanged.bytes_changed) == ("incremental", 0)
    assert len(checkpoints(off)) == 4, "the newest three, and this point's own"
    off.start(paused=True)
    off.poke("vda", 0, MIB, seed=7)
    point, expected = cellar.backup_with_reference(off, start_paused=True)
    assert (point.kind, point.parent) == ("incremental", unchanged.id)
    assert off.domain.isActive(), "it ran before the backup"
    cellar.assert_restores(point.id, expected)
    cellar.assert_nothing_left(off)


def kill_a_backup(guest: LabGuest, cellar: Cellar) -> None:
    """Before it read anything; the VM stays on."""
    ended = subprocesses.run(cellar, guest.name, "--start-paused", "--at", "vmcellar.backup.stages:export")
    assert (ended.code, ended.struck) == (-signal.SIGKILL, True)
    assert guest.domain.isActive()


def test_a_killed_backup_leaves_it_paused_and_recover_stops_it(off: LabGuest, cellar: Cellar) -> None:
    expected = cellar.reference(off)
    kill_a_backup(off, cellar)
    assert [action.action for action in recover.recover(cellar.new_engine())] == ["abandoned"]
    assert not off.domain.isActive()
    assert cellar.leftovers() == []
    cellar.assert_restores(cellar.backup(off, start_paused=True).id, expected)


def test_recover_stops_no_start_but_its_own(off: LabGuest, cellar: Cellar) -> None:
    kill_a_backup(off, cellar)
    off.destroy()
    off.start(paused=True)  # somebody else's, for reasons of his own
    recover.recover(cellar.new_engine())
    assert off.domain.isActive()
    assert cellar.leftovers() == []


def test_recover_waits_while_another_repository_reads_it(
    off: LabGuest, cellar: Cellar, make_cellar: CellarFactory
) -> None:
    kill_a_backup(off, cellar)
    off.domain.abortJob()
    wait_for(lambda: not job_runs(off), "the end of the dead run's job")
    other = make_cellar("other")
    with at_instant(lambda: recover.recover(cellar.new_engine())):
        point, expected = other.backup_with_reference(off)
    assert off.domain.isActive()
    other.assert_restores(point.id, expected)
    recover.recover(cellar.new_engine())
    assert not off.domain.isActive()
    assert cellar.leftovers() == []


def test_whoever_lets_it_run_meanwhile_keeps_it(off: LabGuest, cellar: Cellar) -> None:
    """Its firmware looks for something to boot, so its disks are read; that it is paused again then deceives nobody."""
    expected = cellar.reference(off)

    def run_for_a_while() -> None:
        off.domain.resume()
        wait_for(lambda: off.domain.blockStats("vda")[0] > 0, "the firmware's first read")
        off.domain.suspend()

    with at_instant(run_for_a_while):
        point = cellar.backup(off, start_paused=True)
    assert off.domain.isActive()
    cellar.assert_restores(point.id, expected)
    cellar.assert_nothing_left(off)


def test_what_a_start_would_do_harm_to_is_refused(off: LabGuest, cellar: Cellar) -> None:
    off.domain.attachDeviceFlags(PCI, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    with pytest.raises(PermanentError, match=f"{off.name}: the VM is off, and is not started paused.*devices of this"):
        cellar.backup(off, start_paused=True)
    off.domain.detachDeviceFlags(PCI, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    off.start(paused=True)
    off.domain.managedSave(0)
    with pytest.raises(PermanentError, match="it has a saved state") as raised:
        cellar.backup(off, start_paused=True)
    assert f"virsh start {off.name}" in raised.value.hint
    assert off.domain.hasManagedSaveImage()
    off.domain.managedSaveRemove(0)
    assert not off.domain.isActive()
    assert cellar.leftovers() == []


def test_a_job_takes_vms_that_are_off_if_it_says_so(off: LabGuest, make_cellar: CellarFactory) -> None:
    job = {"name": "all", "domains": [off.name]}
    plain = make_cellar("plain", backups=[job])
    assert select(plain.config, (), "all").off == (off.name,)
    cellar = make_cellar("cellar", backups=[{**job, "when_off": "start-paused"}])
    chosen = select(cellar.config, (), "all")
    assert chosen.off == ()
    assert [(request.vm, request.start_paused) for request in chosen.requests] == [(off.name, True)]
