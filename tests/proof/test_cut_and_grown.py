"""A disk that was cut and grew again between two points: what was in the part that was cut off is gone (pitfall 12)."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from lab.guest import LabGuest
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
