"""Files of a host through its libvirt's storage pools, as those of another host are read and removed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from vmcellar.errors import PermanentError
from vmcellar.sources import libvirt_pool
from vmcellar.sources.libvirt_pool import FILES_POOL, HostFiles

NAME = f"lab-{Path(__file__).stem}"


@pytest.fixture
def connection(libvirt_daemons: str) -> Iterator[libvirt.virConnect]:
    opened = libvirt.open(libvirt_daemons)
    yield opened
    assert not [pool for pool in opened.listAllStoragePools() if pool.name().startswith(FILES_POOL)]
    opened.close()


@pytest.fixture
def pool(connection: libvirt.virConnect, vm_tmp: Path) -> Iterator[libvirt.virStoragePool]:
    """An administrator's pool on the test's folder."""
    made = connection.storagePoolCreateXML(
        f"<pool type='dir'><name>{NAME}</name><target><path>{vm_tmp}</path></target></pool>"
    )
    yield made
    made.destroy()


def test_a_file_is_read_whole(connection: libvirt.virConnect, vm_tmp: Path) -> None:
    (vm_tmp / "VARS.fd").write_bytes(bytes(range(256)) * 4096)
    assert HostFiles(connection).read(vm_tmp / "VARS.fd") == bytes(range(256)) * 4096


@pytest.mark.usefixtures("pool")
def test_a_pool_that_is_there_is_used_and_stays(connection: libvirt.virConnect, vm_tmp: Path) -> None:
    (vm_tmp / "late").write_bytes(b"made after the pool was looked at")
    assert HostFiles(connection).read(vm_tmp / "late") == b"made after the pool was looked at"
    assert connection.storagePoolLookupByName(NAME).isActive()


def test_a_file_that_is_not_there_is_an_error_of_the_system(connection: libvirt.virConnect, vm_tmp: Path) -> None:
    for path in (vm_tmp / "none", vm_tmp / "no-folder" / "none"):
        with pytest.raises(OSError, match=r"none|no-folder"):
            HostFiles(connection).read(path)


def test_the_state_of_a_tpm_is_a_tar_without_its_lock(connection: libvirt.virConnect, vm_tmp: Path) -> None:
    (vm_tmp / "tpm2").mkdir(mode=0o755)
    (vm_tmp / "tpm2" / "tpm2-00.permall").write_bytes(b"state")
    (vm_tmp / "tpm2" / ".lock").touch()
    with tarfile.open(fileobj=io.BytesIO(HostFiles(connection).tpm_state(vm_tmp))) as tar:
        assert tar.getnames() == ["tpm2/tpm2-00.permall"]
        member = tar.extractfile("tpm2/tpm2-00.permall")
        assert member is not None
        assert member.read() == b"state"


@pytest.mark.usefixtures("pool")
def test_only_files_of_the_job_are_removed(connection: libvirt.virConnect, vm_tmp: Path) -> None:
    for name in ("vmc-1.vda.scratch", "vmc-1.vdb.scratch", "vmc-11.vda.scratch", "web1.qcow2"):
        (vm_tmp / name).write_bytes(b"x")
    assert len(libvirt_pool.remove_files(connection, NAME, "vmc-1.")) == 2
    assert {path.name for path in vm_tmp.iterdir()} == {"vmc-11.vda.scratch", "web1.qcow2"}


def test_a_pool_that_is_missing_is_named_with_what_to_type(connection: libvirt.virConnect) -> None:
    with pytest.raises(PermanentError, match="storage pool none") as raised:
        libvirt_pool.folder_of(connection, "none")
    assert "pool-define-as none dir" in raised.value.hint


@pytest.mark.usefixtures("pool")
def test_too_little_space_ends_a_backup_before_it_begins(connection: libvirt.virConnect, vm_tmp: Path) -> None:
    assert libvirt_pool.folder_of(connection, NAME) == str(vm_tmp)
    libvirt_pool.check_space(connection, NAME, "web1", 1)
    with pytest.raises(PermanentError, match=rf"web1: .* free in storage pool {NAME}"):
        libvirt_pool.check_space(connection, NAME, "web1", 1 << 60)
