"""References are the disk at the instant they name, and comparisons see every difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import reference
from lab.disks import MIB
from lab.guest import LabGuest
from lab.monitor import seeded_bytes
from lab.shellcommand import LabError, call

pytestmark = pytest.mark.libvirt


def test_reference_of_a_paused_guest_holds_what_was_written(paused_guest: LabGuest, vm_tmp: Path) -> None:
    for number, target in enumerate(paused_guest.disks):
        paused_guest.poke(target, 2 * MIB, MIB, seed=number)
    paused_guest.poke_zero("vdb", 2 * MIB, MIB // 4)
    paused_guest.poke_discard("vdc", 2 * MIB, MIB // 4)
    copies = reference.of_guest(paused_guest, vm_tmp / "copies")
    for number, target in enumerate(paused_guest.disks):
        expected = bytearray(seeded_bytes(MIB, number))
        if target in {"vdb", "vdc"}:
            expected[: MIB // 4] = bytes(MIB // 4)
        assert copies[target].read_bytes()[2 * MIB : 3 * MIB] == expected, target


def test_job_reference_keeps_the_instant_while_the_disk_changes(paused_guest: LabGuest, vm_tmp: Path) -> None:
    paused_guest.poke("vdb", 0, MIB, seed=1)
    before = reference.of_guest(paused_guest, vm_tmp / "before")
    begin_pull_job(paused_guest, vm_tmp)
    paused_guest.poke("vdb", 0, MIB, seed=2)
    of_job = reference.of_job(paused_guest.domain, vm_tmp / "job")
    paused_guest.domain.abortJob()
    assert reference.mismatches(before, of_job) == []
    now = reference.of_guest(paused_guest, vm_tmp / "now")
    assert [found.target for found in reference.mismatches(before, now)] == ["vdb"]


def test_guest_that_is_off_equals_its_images(paused_guest: LabGuest, vm_tmp: Path) -> None:
    paused_guest.poke("sda", MIB, MIB, seed=4)
    running = reference.of_guest(paused_guest, vm_tmp / "running")
    paused_guest.destroy()
    off = reference.of_guest(paused_guest, vm_tmp / "off")
    assert reference.mismatches(running, off) == []
    assert reference.mismatches(running, dict(paused_guest.paths), "qcow2") == []


def test_no_job_is_said_so(paused_guest: LabGuest, vm_tmp: Path) -> None:
    with pytest.raises(LabError, match="no live backup job"):
        reference.of_job(paused_guest.domain, vm_tmp)


def test_comparison_sees_one_byte_a_size_and_a_missing_disk(tmp_path: Path) -> None:
    expected, changed = tmp_path / "expected", tmp_path / "changed"
    expected.write_bytes(seeded_bytes(MIB, 1))
    changed.write_bytes(seeded_bytes(MIB - 1, 1) + b"\0")
    assert "mismatch at offset" in reference.image_difference(expected, changed)
    shorter = tmp_path / "shorter"
    call(["qemu-img", "create", "-q", "-f", "raw", shorter, str(MIB // 2)])
    assert reference.image_difference(expected, shorter) == f"size is {MIB // 2}, must be {MIB}"
    [problem] = reference.mismatches({"vda": expected}, {"vdb": expected})[:1]
    assert problem.problem == "is in one set only"


def test_comparison_does_not_mind_allocation(tmp_path: Path) -> None:
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    call(["qemu-img", "create", "-q", "-f", "raw", sparse, str(MIB)])
    full.write_bytes(bytes(MIB))
    assert reference.image_difference(sparse, full) == ""


def begin_pull_job(guest: LabGuest, folder: Path) -> None:
    server = f"<server transport='unix' socket='{folder}/backup.sock'/>"
    guest.domain.backupBegin(f"<domainbackup mode='pull'>{server}</domainbackup>", None, 0)
