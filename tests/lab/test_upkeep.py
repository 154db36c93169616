"""Daemons are shared, killed sessions leave nothing behind, and bench disks come out the same twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import libvirt
import pytest

from lab import bigdisk, daemons
from lab.bigdisk import BigDisk
from lab.disks import MIB, DiskSpec
from lab.guest import LabGuest, sweep
from lab.paths import vm_folder
from lab.reference import image_difference
from lab.shellcommand import call
from tests.conftest import GuestFactory

KILLED_SESSION = """
import os, signal
from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.paths import vm_folder
with vm_folder("killed") as folder:
    guest = LabGuest(folder, [DiskSpec("vda", 1 << 20)])
    guest.start(paused=True)
    print(guest.name, folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.libvirt
def test_daemons_are_started_once(libvirt_daemons: str) -> None:
    assert libvirt_daemons == daemons.URI
    assert daemons.answers()
    assert daemons.ensure() is False


@pytest.mark.libvirt
def test_daemons_stay_while_a_domain_runs(paused_guest: LabGuest) -> None:
    assert paused_guest.domain.isActive()
    assert daemons.stop() is False
    assert daemons.answers()


@pytest.mark.libvirt
def test_guest_and_folder_of_a_killed_session_are_swept(libvirt_daemons: str, make_guest: GuestFactory) -> None:
    mine = make_guest([DiskSpec("vda", MIB)])
    killed = subprocess.run([sys.executable, "-c", KILLED_SESSION], capture_output=True, text=True, check=False)
    name, folder = killed.stdout.split()
    assert Path(folder).exists()
    assert name in sweep()
    with vm_folder():
        assert not Path(folder).exists()
    connection = libvirt.open(libvirt_daemons)
    names = {domain.name() for domain in connection.listAllDomains()}
    connection.close()
    assert name not in names
    assert mine.name in names


@pytest.mark.parametrize("kind", ["mixed", "random"])
def test_bench_disk_is_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    disk = BigDisk("tiny", size=96 * MIB, data=32 * MIB, kind=kind)
    copies = []
    for name in ("one", "two"):
        monkeypatch.setenv("VMCELLAR_LAB_DIR", str(tmp_path / name))
        copies.append(tmp_path / f"{name}.raw")
        call(["qemu-img", "convert", "-O", "raw", bigdisk.build(disk), copies[-1]])
    assert image_difference(copies[0], copies[1]) == ""
    allocated = copies[0].stat().st_blocks * 512
    assert 28 * MIB < allocated < 40 * MIB


@pytest.mark.libvirt
def test_scattered_writes_hit_the_places_they_name(make_guest: GuestFactory, tmp_path: Path) -> None:
    guest = make_guest([DiskSpec("vda", 64 * MIB)])
    guest.start(paused=True)
    offsets = bigdisk.scatter(guest, "vda", MIB, seed=3)
    guest.destroy()
    call(["qemu-img", "convert", "-O", "raw", guest.paths["vda"], tmp_path / "raw"])
    data = (tmp_path / "raw").read_bytes()
    changed = [place for place in range(0, len(data), bigdisk.GRID) if any(data[place : place + bigdisk.GRID])]
    assert (changed, len(offsets)) == (offsets, 16)
