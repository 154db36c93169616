"""Guests that boot as real ones do, through SeaBIOS or OVMF and GRUB: so does what is restored of them."""

from __future__ import annotations

import os
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt
import pytest

from lab.bootdisk import BOOT_DISK, boot_disk
from lab.inside import GuestInside
from lab.require import requires
from tests.proof.cellar import Cellar
from vmcellar.progress import CancelToken, no_progress
from vmcellar.restore.bring_back import Wanted, run_restore
from vmcellar.restore.define import TPM_STATE

if TYPE_CHECKING:
    from lab.guest import LabGuest
    from tests.conftest import GuestFactory

OVMF_EMPTY = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@pytest.fixture
def name(libvirt_daemons: str) -> Iterator[str]:
    """A name for the restored VM, which is removed again; the lab's sweep knows it, too."""
    chosen = f"lab-{os.getpid()}-restored-{uuid.uuid4().hex[:8]}"
    yield chosen
    with closing(libvirt.open(libvirt_daemons)) as connection:
        for domain in connection.listAllDomains():
            if domain.name() == chosen:
                if domain.isActive():
                    domain.destroy()
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


@pytest.mark.guest
@pytest.mark.libvirt
@pytest.mark.skipif("VMCELLAR_EVERY_GUEST" not in os.environ, reason="CI has OVMF: set VMCELLAR_EVERY_GUEST=1")
def test_a_guest_of_bios_and_grub_boots_after_a_restore(
    make_guest: GuestFactory, vm_tmp: Path, name: str, libvirt_daemons: str
) -> None:
    """Backed up before its first instruction: nothing of its boot changes the disk."""
    requires("grub-mkimage")
    guest = make_guest([BOOT_DISK], images={"vda": boot_disk("i386-pc", vm_tmp)}, memory=256, firmware="bios")
    guest.start(paused=True)
    back_as(name, guest, vm_tmp, libvirt_daemons)
    assert booted(name, libvirt_daemons) == ("i386-pc", False)


@pytest.mark.guest
@pytest.mark.libvirt
def test_a_guest_of_ovmf_and_grub_boots_after_a_restore_with_its_nvram_and_tpm(
    make_guest: GuestFactory, vm_tmp: Path, name: str, libvirt_daemons: str
) -> None:
    requires("grub-mkimage")
    guest = make_guest([BOOT_DISK], images={"vda": boot_disk("x86_64-efi", vm_tmp)}, memory=256, firmware="uefi")
    guest.start()
    assert came_through(guest) == ("x86_64-efi", True)
    old = nvram_of(guest.domain)
    back_as(name, guest, vm_tmp, libvirt_daemons)
    with closing(libvirt.open(libvirt_daemons)) as connection:
        domain = connection.lookupByName(name)
        new = nvram_of(domain)
        assert old is not None
        assert new not in (None, old)
        assert new.read_bytes() == old.read_bytes() != OVMF_EMPTY.read_bytes()
        assert list((TPM_STATE / domain.UUIDString()).rglob("*permall"))
    assert booted(name, libvirt_daemons) == ("x86_64-efi", True)


def back_as(name: str, guest: LabGuest, folder: Path, uri: str) -> None:
    """Back the running guest up, pull its plug, and restore it as the VM `name`."""
    cellar = Cellar(folder / "cellar")
    summary = cellar.backup(guest)
    guest.destroy()
    wanted = Wanted(folder / "back", "qcow2", (), best_effort=False, define=name)
    run_restore(cellar.engine.repository, cellar.point(summary), wanted, uri, no_progress, CancelToken())


def booted(name: str, uri: str) -> tuple[str, bool]:
    """Start the restored VM, and what it came through."""
    with closing(libvirt.open(uri)) as connection:
        connection.lookupByName(name).create()
        inside = GuestInside(connection, name)
        try:
            inside.wait_ready()
            return came_through(inside)
        finally:
            inside.close_channel()


def came_through(guest: GuestInside) -> tuple[str, bool]:
    """GRUB's platform as its grub.cfg put it on the kernel's command line, and whether the kernel sees EFI."""
    platform = guest.check("sed -n 's/.*lab.grub=//p' /proc/cmdline").strip()
    return platform, guest.run("test -d /sys/firmware/efi")[0] == 0


def nvram_of(domain: libvirt.virDomain) -> Path | None:
    """The file that holds a domain's NVRAM; None without one."""
    found = ET.fromstring(domain.XMLDesc()).findtext("os/nvram")  # noqa: S314  (libvirt's own XML)
    return Path(found) if found else None
