"""A disk that was cut and grew again between two points: what was in the part that was cut off is gone (pitfall 12)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import libvirt
import pytest

from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.paths import give_to_qemu
from tests.proof.cellar import MIB
from tests.proof.conftest import CellarFactory
from vmcellar.sources import libvirt_job

pytestmark = pytest.mark.libvirt


@pytest.mark.parametrize("change", [3 * MIB, -3 * MIB], ids=["grown", "cut"])
def test_resized_just_before_the_job_begins(
    quiet_guest: LabGuest, make_cellar: CellarFactory, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    cellar = make_cellar()
    size = quiet_guest.disks["vda"].size
    quiet_guest.poke("vda", size - 4 * MIB, 4 * MIB, seed=1)
    cellar.backup(quiet_guest)
    backup_xml = libvirt_job.backup_xml

    def resize_first(*arguments: Any) -> str:
        quiet_guest.domain.blockResize("vda", size + change, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        if change > 0:
            quiet_guest.poke("vda", size, change, seed=2)
        return backup_xml(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(libvirt_job, "backup_xml", resize_first)
        point, expected = cellar.backup_with_reference(quiet_guest)
    cellar.assert_restores(point.id, expected)
    (disk,) = (disk for disk in point.disks if disk.target == "vda")
    assert disk.size == size + change
    assert f"vda: resized from {size} to {size + change} bytes as the backup began" in point.warnings
    later, expected = cellar.backup_with_reference(quiet_guest)
    cellar.assert_restores(later.id, expected)
    assert not later.warnings


@pytest.mark.parametrize("written_since", [False, True])
def test_cut_and_grown_again(quiet_guest: LabGuest, make_cellar: CellarFactory, written_since: bool) -> None:
    cellar = make_cellar(limits={"sample": 0})  # else the re-read of clean blocks may find it by chance
    size = quiet_guest.disks["vda"].size
    quiet_guest.poke("vda", 0, 2 * MIB, seed=1)
    quiet_guest.poke("vda", size - 6 * MIB, 5 * MIB, seed=2)
    cellar.backup(quiet_guest)
    for new in (size - 7 * MIB, size):
        quiet_guest.domain.blockResize("vda", new, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    if written_since:
        quiet_guest.poke("vda", size - 4 * MIB, MIB, seed=3)
    point, expected = cellar.backup_with_reference(quiet_guest)
    cellar.assert_restores(point.id, expected)
    assert point.kind == "incremental"
    assert any("cut and grown" in warning for warning in point.warnings)
    later, expected = cellar.backup_with_reference(quiet_guest)
    cellar.assert_restores(later.id, expected)
    assert not later.warnings


def linked_clone(folder: Path, size: int, cluster: str) -> Path:
    """An empty image on top of an empty one of the same size, as of a template."""
    base, top = folder / "base.qcow2", folder / "top.qcow2"
    options = ["-q", "-f", "qcow2", "-o", f"cluster_size={cluster}"]
    for image, backing in ((base, []), (top, ["-b", str(base), "-F", "qcow2"])):
        subprocess.run(["qemu-img", "create", *options, *backing, image, str(size)], check=True)
        give_to_qemu(image)
    return top


@pytest.mark.parametrize(
    ("cluster", "behind"), [("64k", 7 * MIB + 60 * 1024), ("2M", 7 * MIB + 60 * 1024), ("64k", 60 * 1024)]
)
def test_a_linked_clone_is_cut_inside_a_cluster(
    libvirt_daemons: str, vm_tmp: Path, make_cellar: CellarFactory, cluster: str, behind: int
) -> None:
    assert libvirt_daemons
    cellar, size = make_cellar(limits={"sample": 0}), 16 * MIB
    image = linked_clone(vm_tmp, size, cluster)
    with LabGuest(vm_tmp, (DiskSpec("vda", size),), images={"vda": image}) as guest:
        guest.start(paused=True)
        guest.poke("vda", 0, 2 * MIB, seed=1)
        guest.poke("vda", size - 8 * MIB, 8 * MIB, seed=2)
        cellar.backup(guest)
        for new in (size - behind, size):
            guest.domain.blockResize("vda", new, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        point, expected = cellar.backup_with_reference(guest)
        cellar.assert_restores(point.id, expected)
        assert point.kind == "incremental"
        assert any("cut and grown" in warning for warning in point.warnings)
        later, expected = cellar.backup_with_reference(guest)
        cellar.assert_restores(later.id, expected)
        assert not later.warnings


def test_what_was_written_before_a_cut_through_a_large_cluster(
    libvirt_daemons: str, vm_tmp: Path, make_cellar: CellarFactory
) -> None:
    """Without a backing file QEMU keeps the cut cluster, and with it what was written there, but not its dirty bits."""
    assert libvirt_daemons
    cellar, size = make_cellar(limits={"sample": 0}), 16 * MIB
    image = vm_tmp / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", image, str(size)], check=True)
    give_to_qemu(image)
    with LabGuest(vm_tmp, (DiskSpec("vda", size),), images={"vda": image}) as guest:
        guest.start(paused=True)
        guest.poke("vda", 0, 9 * MIB, seed=1)
        cellar.backup(guest)
        guest.poke("vda", 9 * MIB + 128 * 1024, 64 * 1024, seed=2)
        for new in (9 * MIB, size):
            guest.domain.blockResize("vda", new, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        point, expected = cellar.backup_with_reference(guest)
        cellar.assert_restores(point.id, expected)
