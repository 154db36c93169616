"""What says whose a backup job on another host is: no configuration clears what another's run left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmcellar.config.remote import RemoteHost
from vmcellar.errors import PermanentError
from vmcellar.sources import libvirt_scratch
from vmcellar.sources.libvirt_job import JobFiles
from vmcellar.sources.libvirt_remote import RECORD, RemoteJob, files_in
from vmcellar.sources.libvirt_scratch import Owner
from vmcellar.sources.libvirt_source import LibvirtSource

REPOSITORY = "r" * 32
ME = (os.getuid(), os.getgid())


def folder_of(base: Path, run: str, host: str) -> Path:
    folder, hold = libvirt_scratch.create(base, Owner("web1", "uuid", run, REPOSITORY, "none", "", host), ME)
    hold.release()
    return folder


def source(base: Path, uri: str) -> LibvirtSource:
    return LibvirtSource(uri, base, remote=RemoteHost())


def test_vms_of_the_same_name_on_several_hosts_are_kept_apart(tmp_path: Path) -> None:
    """One scratch folder, as it is the default of each configuration, and one repository."""
    base = tmp_path / "scratch"
    hosts = {"": "qemu:///system", "kvm2": "qemu+ssh://root@kvm2/system", "kvm3": "qemu+ssh://root@kvm3/system"}
    folders = {host: folder_of(base, f"run{host}", host) for host in hosts}
    for host, folder in folders.items():
        assert [found for found, _ in libvirt_scratch.owned(base, "web1", REPOSITORY, host)] == [folder]
    left = {host: source(base, uri).left_behind(REPOSITORY) for host, uri in hosts.items()}
    assert left == {host: {"web1"} for host in hosts}
    libvirt_scratch.remove(folders["kvm2"])
    assert source(base, hosts["kvm2"]).left_behind(REPOSITORY) == set()


def test_a_folder_of_an_older_version_is_of_this_host(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "scratch", "run", "")
    owner = folder / libvirt_scratch.OWNER_FILE
    owner.write_text(owner.read_text().replace(',"host":""', ""))
    assert "host" not in owner.read_text()
    assert [found for found, _ in libvirt_scratch.owned(tmp_path / "scratch", "web1", REPOSITORY, "")] == [folder]


def remote_job(folder: Path) -> RemoteJob:
    return RemoteJob(folder, "kvm2", "192.0.2.2", 10810, "/var/scratch", "pool", Path("/etc/pki"))


def test_a_record_is_found_again(tmp_path: Path) -> None:
    remote_job(tmp_path).save()
    assert files_in(tmp_path) == remote_job(tmp_path)
    (tmp_path / RECORD).unlink()
    assert files_in(tmp_path) == JobFiles(tmp_path)


@pytest.mark.parametrize("damaged", [b"", b"{", b"{}", b"\xff"])
def test_a_record_that_cannot_be_read_makes_no_local_job(tmp_path: Path, damaged: bytes) -> None:
    """Its job runs on there, so nothing may be cleared as if it did not."""
    remote_job(tmp_path).save()
    (tmp_path / RECORD).write_bytes(damaged)
    with pytest.raises(PermanentError, match=r"remote\.json.*cannot be read"):
        files_in(tmp_path)
