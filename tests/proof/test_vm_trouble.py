"""What happens to VMs between and during backups: the points stay true, and say what was found."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import libvirt
import pytest

from lab import monitor
from lab.disks import DiskSpec, make_image
from lab.domain import disk_element
from lab.guest import LabGuest
from lab.shellcommand import call
from lab.waiting import wait_for
from tests.proof.cellar import MIB, Cellar, at_instant, checkpoints, job_runs
from tests.proof.conftest import SMALL_DISKS, CellarFactory
from vmcellar.backup.model import PointSummary
from vmcellar.errors import PermanentError, VmcellarError

pytestmark = pytest.mark.libvirt


def reasons(summary: PointSummary) -> dict[str, str]:
    """Why each disk was read in full; empty for those that were not."""
    return {disk.target: disk.full_reason for disk in summary.disks}


def fill(guest: LabGuest) -> None:
    """Four megabytes on each disk."""
    for number, target in enumerate(guest.disks):
        guest.poke(target, MIB, 4 * MIB, seed=number)


def test_what_is_written_during_a_backup_belongs_to_the_next(quiet_guest: LabGuest, cellar: Cellar) -> None:
    fill(quiet_guest)
    expected = cellar.reference(quiet_guest)

    def overwrite() -> None:
        for target in quiet_guest.disks:
            quiet_guest.poke(target, 2 * MIB, MIB, seed=99)
            quiet_guest.poke_zero(target, 3 * MIB, MIB)

    with at_instant(overwrite):
        first = cellar.backup(quiet_guest)
    cellar.assert_restores(first.id, expected)
    second = cellar.backup(quiet_guest)
    cellar.assert_restores(second.id, cellar.reference(quiet_guest))
    assert (second.kind, second.parent) == ("incremental", first.id)
    assert sum(disk.bytes_changed for disk in second.disks) == 2 * MIB * len(quiet_guest.disks)


def test_after_qemu_was_killed_all_is_read_and_almost_nothing_stored(quiet_guest: LabGuest, cellar: Cellar) -> None:
    """Pitfall 5: the bitmaps are broken, libvirt still lists the checkpoint."""
    fill(quiet_guest)
    quiet_guest.destroy()  # what QEMU still held in its caches reaches the images
    quiet_guest.start(paused=True)
    cellar.backup(quiet_guest)
    quiet_guest.poke("vda", 0, MIB, seed=7)
    quiet_guest.kill_qemu()
    quiet_guest.start(paused=True)
    second, expected = cellar.backup_with_reference(quiet_guest)
    assert second.kind == "full"
    assert "bitmap broken" in second.reason
    assert set(reasons(second)) == set(quiet_guest.disks)
    assert sum(disk.bytes_read for disk in second.disks) >= 12 * MIB
    assert sum(disk.bytes_new for disk in second.disks) <= 2 * MIB, "what is known must not be stored again"
    cellar.assert_restores(second.id, expected)
    quiet_guest.poke("vda", 0, MIB, seed=8)
    third, expected = cellar.backup_with_reference(quiet_guest)
    assert third.kind == "incremental"
    cellar.assert_restores(third.id, expected)
    cellar.assert_nothing_left(quiet_guest)


def test_qemu_killed_during_a_backup(quiet_guest: LabGuest, cellar: Cellar) -> None:
    fill(quiet_guest)
    first = cellar.backup(quiet_guest)
    quiet_guest.poke("vda", 0, MIB, seed=7)
    with pytest.raises(VmcellarError) as raised, at_instant(quiet_guest.kill_qemu):
        cellar.backup(quiet_guest)
    assert quiet_guest.name in raised.value.message
    assert cellar.leftovers() == []
    assert [point.id for point in cellar.points(quiet_guest)] == [first.id]
    quiet_guest.start(paused=True)
    second, expected = cellar.backup_with_reference(quiet_guest)
    assert second.kind == "full"
    cellar.assert_restores(second.id, expected)
    cellar.assert_nothing_left(quiet_guest)


@pytest.mark.guest
def test_disks_added_grown_and_removed_while_the_guest_runs(
    make_guest: Callable[..., LabGuest], cellar: Cellar
) -> None:
    """Pitfall 12: only what is new is read in full, and a grown part is never taken for clean."""
    guest = make_guest((DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 8 * MIB + 512)))
    guest.start()
    guest.write("vdb", 0, 8 * MIB, seed=1)
    cellar.backup(guest)

    guest.add_disk(DiskSpec("vdc", 8 * MIB))
    guest.write("vdc", MIB, MIB, seed=2)
    added, expected = cellar.backup_with_reference(guest)
    assert reasons(added) == {"vda": "", "vdb": "", "vdc": "new disk: the parent does not hold it"}
    assert added.kind == "incremental"
    cellar.assert_restores(added.id, expected)

    guest.grow_disk("vdb", 12 * MIB)
    guest.write("vdb", 10 * MIB, MIB, seed=3)
    forget_changes(guest, "vdb")  # as trackers do that call a grown part clean
    grown, expected = cellar.backup_with_reference(guest)
    assert reasons(grown) == {"vda": "", "vdb": "", "vdc": ""}
    cellar.assert_restores(grown.id, expected)

    guest.remove_disk("vdc")
    guest.write("vda", 0, MIB, seed=4)
    removed, expected = cellar.backup_with_reference(guest)
    assert reasons(removed) == {"vda": "", "vdb": ""}
    cellar.assert_restores(removed.id, expected)
    cellar.assert_nothing_left(guest)


def test_another_image_in_the_place_of_a_disk(quiet_guest: LabGuest, cellar: Cellar) -> None:
    fill(quiet_guest)
    cellar.backup(quiet_guest)
    other = quiet_guest.paths["vdb"].with_name("other.qcow2")
    make_image(quiet_guest.disks["vdb"], other)
    call(["qemu-io", "-f", "qcow2", "-c", f"write -P 9 {2 * MIB} {MIB}", other])
    quiet_guest.destroy()
    quiet_guest.swap_image("vdb", other)
    quiet_guest.start(paused=True)
    second, expected = cellar.backup_with_reference(quiet_guest)
    assert reasons(second) == {"vda": "", "vdb": "image replaced since the parent", "vdc": ""}
    cellar.assert_restores(second.id, expected)


def test_a_stuck_change_tracker_is_caught_by_the_sample(quiet_guest: LabGuest, make_cellar: CellarFactory) -> None:
    """Pitfall 4: a bitmap that forgot a change. Here every clean block is re-read; a run re-reads a few of them."""
    cellar = make_cellar(limits={"sample": 1.0})
    fill(quiet_guest)
    cellar.backup(quiet_guest)
    honest = cellar.backup(quiet_guest)
    assert (honest.kind, honest.warnings) == ("incremental", ())
    quiet_guest.poke("vda", 2 * MIB, 64 * 1024, seed=50)
    quiet_guest.poke("vdb", 6 * MIB, 64 * 1024, seed=51)
    forget_changes(quiet_guest, "vda")
    forget_changes(quiet_guest, "vdb")
    second, expected = cellar.backup_with_reference(quiet_guest)
    found = reasons(second)
    assert "the change tracker missed changes" in found["vda"]
    assert str(2 * MIB) in found["vda"]
    assert "the change tracker missed changes" in found["vdb"]
    assert found["vdc"] == ""
    assert any("vda" in warning for warning in second.warnings)
    cellar.assert_restores(second.id, expected)


def forget_changes(guest: LabGuest, target: str) -> None:
    """Clear a disk's dirty bitmaps behind libvirt's back: the tracker calls all clean."""
    node = monitor.block_devices(guest.domain)[target].node
    for name in checkpoints(guest):
        monitor.monitor(guest.domain, "block-dirty-bitmap-clear", node=node, name=name)


def test_without_an_agent_the_point_is_crash_consistent_and_says_so(
    make_guest: Callable[..., LabGuest], cellar: Cellar
) -> None:
    guest = make_guest(SMALL_DISKS, agent=False)
    guest.start(paused=True)
    summary = cellar.backup(guest)
    assert summary.consistency == "crash"
    assert cellar.point(summary).consistency_reason == "the VM has no guest agent channel"


@pytest.mark.guest
def test_a_hanging_agent_neither_stops_the_backup_nor_leaves_the_guest_frozen(
    make_guest: Callable[..., LabGuest], make_cellar: CellarFactory
) -> None:
    """Pitfall 17: the agent takes the freeze only when it wakes up, after the backup went on without it."""
    cellar = make_cellar(limits={"freeze": "2s"})
    guest = make_guest((DiskSpec("vda", 16 * MIB, ext4=True),))
    guest.start()
    guest.agent_hang()
    summary, expected = cellar.backup_with_reference(guest)
    assert summary.consistency == "crash"
    assert "the freeze failed" in cellar.point(summary).consistency_reason
    cellar.assert_restores(summary.id, expected)
    guest.check("killall -CONT qemu-ga")
    wait_for(lambda: thawed(guest), "the guest to be thawed", seconds=20)
    guest.fill("after", 64 * 1024, seed=1)
    hook = {"when": "thawed", "at": "guest", "run": "cat /proc/sys/kernel/ostype; echo $VMCELLAR_VM"}
    following = cellar.with_settings(backups=[{"name": "mine", "hooks": [hook]}]).backup(guest, job="mine")
    assert following.consistency == "quiesced"
    assert f"Linux | {guest.name}" in following.hooks[0]
    assert thawed(guest)


def thawed(guest: LabGuest) -> bool:
    """Whether the agent answers and says that no file system is frozen."""
    try:
        return bool(guest.agent("guest-fsfreeze-status", seconds=2) == "thawed")
    except libvirt.libvirtError:
        return False


def test_raw_disk_is_full_each_time_and_named(make_guest: Callable[..., LabGuest], cellar: Cellar) -> None:
    guest = make_guest((DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 8 * MIB, format="raw")))
    guest.start(paused=True)
    for target in guest.disks:
        guest.poke(target, MIB, MIB, seed=1)
    cellar.backup(guest)
    guest.poke("vda", MIB, 64 * 1024, seed=2)
    guest.poke("vdb", MIB, 64 * 1024, seed=2)
    second, expected = cellar.backup_with_reference(guest)
    assert second.kind == "incremental"
    assert reasons(second) == {"vda": "", "vdb": "raw disk: no bitmap"}
    assert {disk.target: disk.bytes_read for disk in second.disks}["vda"] == 64 * 1024
    cellar.assert_restores(second.id, expected)


def test_a_disk_that_cannot_be_held_is_named(quiet_guest: LabGuest, cellar: Cellar) -> None:
    """Pitfall 13: the disk without which the backup is not the VM."""
    spec = DiskSpec("vdd", 4 * MIB, format="raw")
    image = quiet_guest.paths["vda"].with_name("shared.raw")
    make_image(spec, image)
    shared = disk_element(spec, image)
    ET.SubElement(shared, "shareable")
    quiet_guest.domain.attachDevice(ET.tostring(shared, encoding="unicode"))
    summary = cellar.backup(quiet_guest)
    assert len(summary.uncovered) == 1
    assert summary.uncovered[0].startswith("vdd: shareable")
    assert [(disk.target, disk.expected) for disk in cellar.point(summary).uncovered] == [("vdd", False)]
    excluded = cellar.backup(quiet_guest, exclude_disks=("vdb", "vdd"))
    assert excluded.uncovered == (), "the policy names them"
    assert [disk.target for disk in excluded.disks] == ["vda", "vdc"]
    with pytest.raises(PermanentError, match="nothing to back up"):
        cellar.backup(quiet_guest, exclude_disks=("vda", "vdb", "vdc", "vdd"))
    assert not job_runs(quiet_guest)
