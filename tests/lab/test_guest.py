"""The laboratory's guest does what its methods say: seen from inside, and from QEMU's side."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lab import reference
from lab.disks import MIB, DiskSpec
from lab.guest import LabGuest
from lab.inside import GuestInside
from lab.monitor import seeded_bytes
from lab.shellcommand import LabError
from tests.conftest import GuestFactory

pytestmark = pytest.mark.guest


def disk_bytes(guest: LabGuest, folder: Path, target: str) -> bytes:
    return reference.of_guest(guest, folder)[target].read_bytes()


@pytest.mark.parametrize("target", ["vdb", "vdc", "sda"])
def test_guest_writes_zeroes_and_discards_reach_the_disk(shared_guest: LabGuest, vm_tmp: Path, target: str) -> None:
    shared_guest.write(target, MIB, 4 * MIB, seed=1)
    shared_guest.zero(target, 2 * MIB, MIB)
    shared_guest.discard(target, 3 * MIB, MIB)
    expected = bytearray(seeded_bytes(4 * MIB, 1))
    expected[MIB : 3 * MIB] = bytes(2 * MIB)
    assert disk_bytes(shared_guest, vm_tmp, target)[MIB : 5 * MIB] == expected


def test_every_new_client_of_the_channel_is_heard(shared_guest: LabGuest) -> None:
    for number in range(20):
        shared_guest.close_channel()
        assert shared_guest.check(f"echo {number}", seconds=20) == f"{number}\n"


def test_files_fill_delete_and_trim(shared_guest: LabGuest) -> None:
    shared_guest.fill("some file", 4 * MIB, seed=3)
    assert shared_guest.check("stat -c %s '/data/some file'").strip() == str(4 * MIB)
    shared_guest.delete("some file")
    shared_guest.fstrim()
    code, output = shared_guest.run("cat '/data/some file'")
    assert code != 0
    assert "No such file" in output


def test_sector_sizes_as_asked(shared_guest: LabGuest) -> None:
    sizes = {
        target: shared_guest.check(f"blockdev --getss $(lab-device lab-{target})").strip()
        for target in shared_guest.disks
    }
    assert sizes == {"vda": "512", "vdb": "512", "vdc": "4096", "sda": "512"}


def test_agent_freezes_hangs_stops_and_comes_back(shared_guest: LabGuest) -> None:
    assert shared_guest.agent("guest-fsfreeze-freeze") == 1
    assert shared_guest.agent("guest-fsfreeze-status") == "frozen"
    assert shared_guest.run("true")[0] == 0
    assert shared_guest.agent("guest-fsfreeze-thaw") == 1
    shared_guest.agent_hang()
    assert not shared_guest.agent_answers()
    shared_guest.agent_start()
    shared_guest.agent_stop()
    assert not shared_guest.agent_answers()
    shared_guest.agent_start()


def test_disk_comes_grows_and_goes_while_the_guest_runs(shared_guest: LabGuest, vm_tmp: Path) -> None:
    shared_guest.add_disk(DiskSpec("vdd", 16 * MIB))
    shared_guest.write("vdd", 0, MIB, seed=5)
    shared_guest.grow_disk("vdd", 24 * MIB)
    content = disk_bytes(shared_guest, vm_tmp, "vdd")
    assert (len(content), content[:MIB]) == (24 * MIB, seeded_bytes(MIB, 5))
    shared_guest.remove_disk("vdd")
    with pytest.raises(LabError, match="lab-vdd"):
        shared_guest.check("lab-device lab-vdd")


def test_writer_changes_the_disk_until_it_is_stopped(shared_guest: LabGuest, vm_tmp: Path) -> None:
    before = reference.of_guest(shared_guest, vm_tmp / "before")
    shared_guest.start_writer("vdb")
    shared_guest.check("until [ $(awk '{print $5}' /sys/block/vdb/stat) -gt 20 ]; do usleep 20000; done")
    shared_guest.stop_writer()
    after = reference.of_guest(shared_guest, vm_tmp / "after")
    assert [found.target for found in reference.mismatches(before, after)] == ["vdb"]
    assert reference.mismatches(after, reference.of_guest(shared_guest, vm_tmp / "again")) == []


def test_guests_run_side_by_side_and_another_client_can_look_inside(
    shared_guest: LabGuest, make_guest: GuestFactory
) -> None:
    other = make_guest([DiskSpec("vda", 32 * MIB, ext4=True)], agent=False)
    other.start()
    other.fill("file", MIB, seed=2)
    inside = GuestInside(other.connection, other.name)
    other.close_channel()
    assert inside.digest("/data/file") == other_digest(2)
    inside.close_channel()
    assert not other.has_agent
    assert shared_guest.run("true")[0] == 0
    other.stop()
    other.start(paused=True)
    other.kill_qemu()
    assert not other.domain.isActive()


def other_digest(seed: int) -> str:
    return hashlib.sha256(seeded_bytes(MIB, seed)).hexdigest()
