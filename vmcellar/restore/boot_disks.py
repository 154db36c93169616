"""The disks of a VM that runs from the repository: served over NBD, and an overlay over each for what it writes."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from vmcellar.restore.boot_journal import Boot
from vmcellar.restore.define import hypervisor_account
from vmcellar.restore.qcow2_overlay import write_overlay
from vmcellar.restore.restore import write_file
from vmcellar.restore.serve import Address, Opening, Server
from vmcellar.tiers.local import make_directory

if TYPE_CHECKING:
    from vmcellar.repository.points import DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.qcow2 import UsedClusters

RECONNECT_SECONDS = 60
"""How long QEMU waits for a server that went away before it pauses the VM."""

DEFINITION = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
"""What of a domain is read to be defined again."""


@contextmanager
def serving(
    repository: Repository, opening: Opening, entry: Boot, point: RestorePoint, disks: tuple[DiskRecord, ...]
) -> Iterator[Server]:
    """The point's disks on the entry's socket, which QEMU's account may open, while the block runs.

    The entry's folder is made when it is missing. A socket that is there is that of a server that was killed: the
    caller holds the lock of the entry. Errors are those of `Server`.
    """
    make_directory(Path(entry.folder), mode=0o711)
    entry.socket.unlink(missing_ok=True)
    account = hypervisor_account() if os.geteuid() == 0 else None
    owner = (account.pw_uid, account.pw_gid) if account else None
    with Server(repository, opening, point, disks, Address(entry.socket, owner=owner)) as server:
        yield server


def write_overlays(entry: Boot, used: Mapping[str, UsedClusters]) -> dict[str, Path]:
    """The images of the VM by target, new and durable, over what is served; a file of an earlier try is replaced."""
    for target, clusters in used.items():
        write_overlay(entry.overlay(target), Address(entry.socket).uri(target), clusters)
    return {target: entry.overlay(target) for target in used}


def write_artifacts(repository: Repository, point: RestorePoint, folder: Path) -> dict[str, Path]:
    """What was captured beside the disks, as files in `folder`."""
    written = {}
    for artifact in point.artifacts:
        path = written[artifact.name] = folder / artifact.name
        write_file(path, repository.artifact(artifact))
    return written


def with_backing(xml: str, entry: Boot) -> str:
    """The definition in which each disk lies on the served one, and an error of that pauses the VM."""
    root = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
    for target, disk in _own_disks(root, entry):
        for element in disk.findall("backingStore"):
            disk.remove(element)
        backing = ET.Element("backingStore", {"type": "network"})
        ET.SubElement(backing, "format", {"type": "raw"})
        source = ET.SubElement(backing, "source", {"protocol": "nbd", "name": target})
        ET.SubElement(source, "host", {"transport": "unix", "socket": str(entry.socket)})
        ET.SubElement(source, "reconnect", {"delay": str(RECONNECT_SECONDS)})
        ET.SubElement(backing, "backingStore")
        disk.insert(2, backing)
        driver = disk.find("driver")
        if driver is not None:
            driver.set("error_policy", "stop")
            driver.set("rerror_policy", "stop")
    return ET.tostring(root, encoding="unicode")


def without_backing(xml: str, entry: Boot) -> str:
    """The definition of a VM on images of its own."""
    root = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
    for _, disk in _own_disks(root, entry):
        for element in disk.findall("backingStore"):
            disk.remove(element)
        driver = disk.find("driver")
        if driver is not None:
            driver.attrib.pop("error_policy", None)
            driver.attrib.pop("rerror_policy", None)
    return ET.tostring(root, encoding="unicode")


def _own_disks(root: ET.Element, entry: Boot) -> list[tuple[str, ET.Element]]:
    found = []
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("dev") in entry.targets:
            found.append((target.get("dev", ""), disk))
    return found
