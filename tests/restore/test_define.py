"""A restored VM beside the old one, on real libvirt: both run at once, so nothing is shared."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt
import pytest

from lab.disks import MIB, DiskSpec
from lab.inside import GuestInside
from tests.restore.world import World
from vmcellar.errors import IntegrityError, PermanentError, UsageError
from vmcellar.restore.define import check_name_free, define_domain, place_tpm_state
from vmcellar.restore.domain_xml import RestoredFiles
from vmcellar.restore.report import RestoreReport, RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.sources.libvirt_artifacts import collect
from vmcellar.sources.libvirt_connection import Connection

if TYPE_CHECKING:
    from lab.guest import LabGuest
    from tests.conftest import GuestFactory

DISKS = (DiskSpec("vda", 32 * MIB, ext4=True), DiskSpec("sda", 4 * MIB))


@pytest.mark.parametrize("name", ["", "a/b", "/etc/vm", "a\nb"])
def test_what_libvirt_takes_as_no_name_is_refused_before_a_long_restore(libvirt_daemons: str, name: str) -> None:
    """Its images would lie below the folder that the name leads to."""
    with pytest.raises(UsageError, match="is no name of a VM"):
        check_name_free(Connection(libvirt_daemons), name)
    xml = f"<domain type='qemu'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os></domain>"
    with pytest.raises(libvirt.libvirtError, match="name"):
        libvirt.open(libvirt_daemons).defineXML(xml)


@pytest.fixture
def name(libvirt_daemons: str) -> Iterator[str]:
    """A name for the restored VM, which is removed again; the lab's sweep knows it, too."""
    chosen = f"lab-{os.getpid()}-restored-{uuid.uuid4().hex[:8]}"
    yield chosen
    connection = libvirt.open(libvirt_daemons)
    for domain in connection.listAllDomains():
        if domain.name() == chosen:
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    connection.close()


@pytest.fixture
def old(make_guest: GuestFactory) -> LabGuest:
    """The VM that was backed up."""
    return make_guest(DISKS)


def backed_up(world: World, guest: LabGuest, folder: Path) -> RestoreReport:
    """A point of the guest's disks as they are while it is off, and what belongs to it; then a restore of that."""
    disks = {}
    for target, image in guest.paths.items():
        raw = world.settings.state / f"{target}.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
        disks[target] = raw.read_bytes()
    artifacts, warnings = collect(guest.domain)
    assert warnings == ()
    point = world.add(disks, artifacts)
    return restore_point(world.repository, point, RestoreTarget(folder, "qcow2"))


def define(uri: str, report: RestoreReport, name: str) -> None:
    files = RestoredFiles(report.directory, "qcow2", {d.target: d.path for d in report.disks}, report.artifacts)
    done = define_domain(Connection(uri), report.artifacts["domain.xml"].read_text(), name, files)
    assert done.name == name
    assert done.dropped == ()


@pytest.mark.guest
@pytest.mark.libvirt
def test_the_restored_vm_boots_beside_the_old_one(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str
) -> None:
    report = backed_up(world, old, vm_tmp / "back" / "web")
    old.start(paused=True)
    define(libvirt_daemons, report, name)
    connection = libvirt.open(libvirt_daemons)
    domain = connection.lookupByName(name)
    assert domain.UUIDString() != old.domain.UUIDString()
    for path in old.paths.values():
        assert str(path) not in domain.XMLDesc()
    domain.create()
    inside = GuestInside(connection, name)
    try:
        inside.wait_ready()
        inside.check("grep -q ' /data ext4' /proc/mounts")
        assert old.domain.isActive()
    finally:
        inside.close_channel()
        connection.close()


@pytest.mark.libvirt
def test_a_taken_name_is_refused_and_nothing_changes(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str
) -> None:
    report = backed_up(world, old, vm_tmp / "back")
    before = old.domain.XMLDesc()
    with pytest.raises(PermanentError, match=f"a VM {old.name} exists already"):
        define(libvirt_daemons, report, old.name)
    assert old.domain.XMLDesc() == before
    assert report.disks[0].path.exists()


@pytest.mark.libvirt
def test_an_unreachable_folder_is_said_before_anything_is_defined(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str
) -> None:
    closed = vm_tmp / "closed"
    closed.mkdir(mode=0o700)
    os.chown(closed, 0, 0)
    report = backed_up(world, old, closed / "back")
    with pytest.raises(PermanentError, match="cannot reach the images"):
        define(libvirt_daemons, report, name)
    check_name_free(Connection(libvirt_daemons), name)


@pytest.mark.libvirt
def test_what_libvirt_refuses_leaves_no_vm_and_no_tpm_state(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str
) -> None:
    report = backed_up(world, old, vm_tmp / "back")
    xml = report.artifacts["domain.xml"].read_text().replace("<vcpu", "<vcpu placement='nowhere'")
    files = RestoredFiles(report.directory, "qcow2", {d.target: d.path for d in report.disks}, report.artifacts)
    with pytest.raises(PermanentError):
        define_domain(Connection(libvirt_daemons), xml.replace("placement='static'", ""), name, files)
    check_name_free(Connection(libvirt_daemons), name)


def archive(folder: Path, names: dict[str, bytes]) -> Path:
    path = folder / "tpm.tar"
    with tarfile.open(path, "w") as tar:
        for entry_name, data in names.items():
            entry = tarfile.TarInfo(entry_name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_tpm_state_lies_where_libvirt_looks_for_it(tmp_path: Path) -> None:
    place_tpm_state(archive(tmp_path, {"tpm2/tpm2-00.permall": b"state"}), tmp_path / "uuid")
    assert (tmp_path / "uuid" / "tpm2" / "tpm2-00.permall").read_bytes() == b"state"


@pytest.mark.parametrize("outside", ["../escaped", "/vmcellar-escaped", "tpm2/../../escaped"])
def test_tpm_state_never_leaves_its_folder(tmp_path: Path, outside: str) -> None:
    with pytest.raises(IntegrityError):
        place_tpm_state(archive(tmp_path, {outside: b"x"}), tmp_path / "uuid")
    assert not (tmp_path / "escaped").exists()
    assert not Path("/vmcellar-escaped").exists()
