"""A backup job on another host: QEMU there serves NBD with TLS, and its scratch files lie in a storage pool there.

Nothing of ours runs on that host: libvirt makes the scratch files where they are missing, and removes them at the end
of the job (virDomainBackupBegin). Both sides show a certificate of one CA: ours verifies the host's name, and QEMU lets
nobody in without one (`backup_tls_x509_verify`). Source: libvirt's formatbackup, qemu.conf.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import libvirt
from pydantic import TypeAdapter, ValidationError

from vmcellar.config.remote import RemoteHost
from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.folders import sync_folder
from vmcellar.sources import libvirt_pool
from vmcellar.sources.libvirt_connection import BusyError
from vmcellar.sources.libvirt_job import JobFiles
from vmcellar.sources.libvirt_uri import other_host
from vmcellar.sources.nbd import export_size, tls_uri

RECORD = "remote.json"
CA = "ca-cert.pem"
CLIENT_FILES = (CA, "client-cert.pem", "client-key.pem")
_PROBE_SECONDS = 2.0


class PortTakenError(BusyError):
    """Somebody else serves on the port that was chosen for a job."""


@dataclass(frozen=True, slots=True)
class RemoteJob(JobFiles):
    """A job on another host. `folder` is on this one, and holds what says whose the job is.

    `host` is the name that its certificate must bear, `address` where QEMU serves there, `scratch_folder` that of the
    storage pool `pool` there.
    """

    host: str
    address: str
    port: int
    scratch_folder: str
    pool: str
    certificates: Path

    def scratch(self, target: str) -> Path:
        """Where QEMU keeps a disk's old data, on the other host."""
        return Path(self.scratch_folder) / f"{self.prefix}{target}.scratch"

    @property
    def prefix(self) -> str:
        """What the names of this job's scratch files begin with, and no other's."""
        return f"{self.folder.name}."

    def export(self, target: str) -> str:
        """A name that no other job has: one that has the port by now refuses it, and serves no other VM's disk."""
        return self.prefix + target

    def uri(self, target: str) -> str:
        """The NBD URI of a disk."""
        return tls_uri(self.host, self.port, self.export(target), self.certificates)

    @property
    def server(self) -> dict[str, str]:
        """Where QEMU serves, as attributes of the job's XML."""
        return {"transport": "tcp", "tls": "yes", "name": self.address, "port": str(self.port)}

    @property
    def place(self) -> str:
        """Where QEMU serves, for people and for the record."""
        return f"{self.host}:{self.port}"

    def is_of(self, job: ET.Element) -> bool:
        """Whether a job with this XML is the one with these files: a port may be another's by now, these names not."""
        begin = str(Path(self.scratch_folder) / self.prefix)
        return any(found.get("file", "").startswith(begin) for found in job.iterfind("disks/disk/scratch"))

    def save(self) -> None:
        """Make the record from which `files_in` finds the job again, also in a new process."""
        new = self.folder / f".{RECORD}"
        with new.open("wb") as file:
            file.write(_RECORD.dump_json(self))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / RECORD)
        sync_folder(self.folder)


_RECORD = TypeAdapter(RemoteJob)


def files_in(folder: Path) -> JobFiles:
    """The files of the job whose folder this is, here or on another host.

    PermanentError, and nothing may be cleared, where a record of another host's job cannot be read.
    """
    try:
        return _RECORD.validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return JobFiles(folder)
    except (OSError, ValidationError) as error:
        raise PermanentError(
            f"{folder / RECORD}, which says where a backup job on another host lies, cannot be read: {error}",
            hint=f"end that VM's job there (`virsh domjobabort VM`), remove its {folder.name}.* from the storage pool "
            f"for scratch files, then remove {folder}",
        ) from error


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """How VMs of another host are read: its name as the URI has it, and the settings."""

    host: str
    settings: RemoteHost

    @classmethod
    def of(cls, uri: str, settings: RemoteHost) -> Elsewhere | None:
        """None where `uri` names this host."""
        host = other_host(uri)
        return cls(host, settings) if host else None

    def job(self, folder: Path, connection: libvirt.virConnect, vm: str) -> RemoteJob:
        """The files of a new job. PermanentError with what to do where certificates, pool or connection are not fit;
        TransientError where the host's address is not known now.
        """
        check_connection(connection, vm)
        check_certificates(self.settings.certificates)
        scratch = libvirt_pool.folder_of(connection, self.settings.scratch_pool)
        address = self.settings.address or address_of(self.host)
        port = next(self._ports(), self.settings.port_range()[0])
        pool, certificates = self.settings.scratch_pool, self.settings.certificates
        job = RemoteJob(folder, self.host, address, port, scratch, pool, certificates)
        job.save()
        return job

    def on_another_port(self, job: RemoteJob) -> RemoteJob:
        """The same job on a port on which nobody serves now."""
        moved = replace(job, port=next(self._ports(), job.port))
        moved.save()
        return moved

    def _ports(self) -> Iterator[int]:
        """The ports on which nobody serves, from a random one on: jobs that begin at once rarely choose the same."""
        every = self.settings.port_range()
        start = secrets.randbelow(len(every))
        return (port for port in (*every[start:], *every[:start]) if not is_served(self.host, port))


def address_of(host: str) -> str:
    """The address at which `host` is reached from here: what its name means there may be a loopback address.

    TransientError where the look-up fails, also where the answer is that there is no such name: libvirt has just
    reached the host by it, and a resolver that comes back up says so for a while. A name that is wrong for good fails
    the same after some tries, and `vmcellar doctor` tells of it at once.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TransientError(
            f"{host}: its address cannot be looked up: {error}",
            hint=f"it is tried again; `getent ahosts {host}` must answer on this host (DNS, or /etc/hosts)",
        ) from error
    return str(found[0][4][0])


def is_served(host: str, port: int) -> bool:
    """Whether somebody takes connections on a port."""
    try:
        with closing(socket.create_connection((host, port), _PROBE_SECONDS)):
            return True
    except OSError:
        return False


def check_connection(connection: libvirt.virConnect, what: str) -> None:
    """PermanentError unless nobody on the way can read the connection: it carries the VM's secrets."""
    if not connection.isSecure():
        raise PermanentError(
            f"{what}: the connection to libvirt at {connection.getURI()} is not encrypted",
            hint="use qemu+ssh:// or qemu+tls:// in libvirt.uri",
        )


def check_certificates(folder: Path) -> None:
    """PermanentError naming what is missing of the files by which this host shows who it is."""
    missing = [name for name in CLIENT_FILES if not os.access(folder / name, os.R_OK)]
    if missing:
        raise PermanentError(
            f"NBD over TLS: {folder} has no readable {', '.join(missing)}",
            hint="make the certificates as docs/remote-hosts.md says, or set `libvirt: remote: certificates:`",
        )


def check_door(job: RemoteJob, target: str, vm: str) -> None:
    """PermanentError if QEMU lets in who shows no certificate: then anybody who reaches the port reads the disk."""
    stranger = job.folder / "stranger"
    stranger.mkdir(exist_ok=True)
    shutil.copyfile(job.certificates / CA, stranger / CA)
    try:
        export_size(replace(job, certificates=stranger).uri(target), f"{vm}: {target}")
    except VmcellarError:
        return
    finally:
        shutil.rmtree(stranger, ignore_errors=True)
    raise PermanentError(
        f"{vm}: QEMU on {job.host} serves the disks to whoever connects to port {job.port}, with or without a "
        "certificate",
        hint=f"set `backup_tls_x509_verify = 1` in /etc/libvirt/qemu.conf on {job.host} and restart libvirtd there",
    )
