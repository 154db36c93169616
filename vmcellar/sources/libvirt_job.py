"""One pull-mode backup job of a domain: its XML, whose it is, its beginning and its end.

Source: libvirt's formatbackup and virDomainBackupBegin. In pull mode aborting is the normal end (pitfall 10).
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt

from vmcellar.errors import TransientError
from vmcellar.sources.base import SourceDisk
from vmcellar.sources.libvirt_connection import explain

END_SECONDS = 60.0
"""How long QEMU may take to end an aborted job: it waits for requests to slow storage."""

_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Where a job's socket and scratch files lie."""

    folder: Path

    @property
    def socket(self) -> Path:
        """The socket on which QEMU serves NBD."""
        return self.folder / "nbd"

    def scratch(self, target: str) -> Path:
        """Where QEMU keeps a disk's old data when the guest writes."""
        return self.folder / f"{target}.scratch"

    def export(self, target: str) -> str:
        """Under which name QEMU serves a disk."""
        return target

    def uri(self, target: str) -> str:
        """The NBD URI of a disk."""
        return f"nbd+unix:///{target}?socket={self.socket}"

    @property
    def server(self) -> dict[str, str]:
        """Where QEMU serves, as attributes of the job's XML."""
        return {"transport": "unix", "socket": str(self.socket)}

    @property
    def place(self) -> str:
        """Where QEMU serves, for people and for the record."""
        return str(self.socket)

    def is_of(self, job: ET.Element) -> bool:
        """Whether a job with this XML is the one with these files."""
        server = job.find("server")
        return server is not None and server.get("socket") == str(self.socket)


def bitmap_name(target: str) -> str:
    """Under which name a disk's dirty bitmap is exported."""
    return f"backup-{target}"


def backup_xml(files: JobFiles, disks: Sequence[SourceDisk], others: Sequence[str], parent: str | None) -> str:
    """The job's XML: disks with a `full_reason` in full, the rest against `parent`; `others` are left out by name."""
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", files.server)
    listing = ET.SubElement(root, "disks")
    for disk in disks:
        element = ET.SubElement(listing, "disk", name=disk.target, backup="yes", type="file")
        element.set("exportname", files.export(disk.target))
        if disk.full_reason or parent is None:
            element.set("backupmode", "full")
        else:
            element.set("backupmode", "incremental")
            element.set("incremental", parent)
            element.set("exportbitmap", bitmap_name(disk.target))
        ET.SubElement(element, "driver", type="qcow2")
        ET.SubElement(element, "scratch", file=str(files.scratch(disk.target)))
    for target in others:
        ET.SubElement(listing, "disk", name=target, backup="no")
    return ET.tostring(root, encoding="unicode")


def running(domain: libvirt.virDomain) -> ET.Element | None:
    """The XML of the backup job that runs on the domain, or None when none runs."""
    try:
        xml = domain.backupGetXMLDesc(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
            return None  # no job, or the VM stopped
        raise explain(error, domain.name(), "looking for a backup job") from error
    return ET.fromstring(xml)  # noqa: S314


def running_socket(domain: libvirt.virDomain) -> str | None:
    """The NBD socket (or host:port) of the backup job that runs on the domain, or None when none runs."""
    job = running(domain)
    if job is None:
        return None
    server = job.find("server")
    if server is None:
        return "a push job"
    return server.get("socket") or f"{server.get('name', '')}:{server.get('port', '')}"


def refuse_if_busy(domain: libvirt.virDomain) -> None:
    """TransientError naming what works on the domain already, rather than libvirt's 30 s wait for its lock."""
    vm = domain.name()
    socket = running_socket(domain)
    if socket is not None:
        raise TransientError(
            f"{vm}: another backup job runs on this VM (NBD server {socket}), and it is not ours to end",
            hint=f"wait for that tool, or, if it is dead, `virsh domjobabort {vm}`",
        )
    if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
        hint = f"see `virsh domjobinfo {vm}`; it is tried again"
        raise TransientError(f"{vm}: another job (migration, save, dump) runs on this VM", hint=hint)


def holds(domain: libvirt.virDomain, files: JobFiles) -> bool:
    """Whether the job with these files runs on the domain."""
    job = running(domain) if domain.isActive() else None
    return job is not None and files.is_of(job)


def end(domain: libvirt.virDomain, files: JobFiles) -> bool:
    """End the job with these files and wait until QEMU let go; False when it does not run. Never ends another job."""
    if not holds(domain, files):
        return False
    try:
        domain.abortJob()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise explain(error, domain.name(), "ending the backup job") from error
    deadline = time.monotonic() + END_SECONDS
    while holds(domain, files):
        if time.monotonic() > deadline:
            raise TransientError(
                f"{domain.name()}: the backup job did not end within {END_SECONDS:.0f} s",
                hint=f"see `virsh domjobinfo {domain.name()}`; `vmcellar recover` tries again",
            )
        time.sleep(_POLL_SECONDS)
    return True
