"""Instant restore: a VM runs from the repository at once, and its disks come over while it runs.

Each disk is a qcow2 overlay at its final place, whose backing is the point's disk served over NBD (`serve`). The guest
writes into the overlay; a block job pulls the rest into it and then cuts the backing off. So the overlay is never given
up: what the guest wrote is where it stays. If the server goes away (a kill), QEMU waits for it, then pauses the VM at
its next read; `finish` serves again and goes on. Crash behaviour of each phase: `boot_journal.Phase`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from vmcellar.errors import PermanentError, TransientError
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.restore import boot_pull
from vmcellar.restore.boot_journal import Boot, BootJournal
from vmcellar.restore.define import TPM_STATE, define_domain, hypervisor_account
from vmcellar.restore.domain_xml import KEPT, Networks, RestoredFiles
from vmcellar.restore.plan import chosen_disks, make_plan
from vmcellar.restore.restore import DOMAIN_XML
from vmcellar.restore.serve import Address, Opening, Server
from vmcellar.restore.thaw import refuse_archived
from vmcellar.sources.libvirt_connection import Connection, explain
from vmcellar.tiers.local import make_directory

if TYPE_CHECKING:
    from vmcellar.repository.points import DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository

TPM = "tpm.tar"
RECONNECT_SECONDS = 60
"""How long QEMU waits for a server that went away before it pauses the VM."""

_DEFINITION = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)


@dataclass(frozen=True, slots=True)
class BootReport:
    """A VM that needs the repository no more. `to_start` are seconds from the command to the started VM."""

    name: str
    point: str
    folder: str
    to_start: float
    seconds: float
    runs: bool


class Booter:
    """Works on one VM whose journal entry this process holds."""

    def __init__(
        self, repository: Repository, opening: Opening, connection: Connection, networks: Networks = KEPT
    ) -> None:
        self._repository = repository
        self._opening = opening
        self._connection = connection
        self._networks = networks

    def go(
        self, journal: BootJournal, started: Callable[[float], None], progress: ProgressSink, cancel: CancelToken
    ) -> BootReport:
        """From wherever the journal stands to a VM on disks of its own. `started` is told the seconds to the start.

        When stopped, or on an error after the start, the VM and what it wrote stay, and `go` may be called again. An
        error before the start takes everything back.
        """
        begun = time.monotonic()
        point = self._repository.point(journal.entry.point)
        disks = chosen_disks(point, journal.entry.targets)
        with self._serving(journal.entry, point, disks):
            if journal.entry.phase != "started":
                try:
                    plan = make_plan(self._repository, point, journal.entry.targets, cancel=cancel)
                    refuse_archived(self._repository, plan)
                    self._prepare(journal, point, disks)
                    self._start(journal)
                except BaseException:
                    self._take_back(journal)
                    raise
            to_start = time.monotonic() - begun
            started(to_start)
            domain = self._domain(journal.entry)
            for disk in disks:
                boot_pull.bring_over(domain, journal.entry, disk.target, progress, cancel)
            self._let_repository_go(journal.entry)
        journal.end()
        return BootReport(
            journal.entry.name, point.id, journal.entry.folder, to_start, time.monotonic() - begun, self._runs(domain)
        )

    def abort(self, journal: BootJournal) -> None:
        """Remove the VM and its images, with all that its guest wrote."""
        self._take_back(journal)

    def _serving(self, entry: Boot, point: RestorePoint, disks: tuple[DiskRecord, ...]) -> _Serving:
        make_directory(Path(entry.folder), mode=0o711)
        entry.socket.unlink(missing_ok=True)  # of a server that was killed: this process holds the journal's lock
        return _Serving(Server(self._repository, self._opening, point, disks, Address(entry.socket)), entry.socket)

    def _prepare(self, journal: BootJournal, point: RestorePoint, disks: tuple[DiskRecord, ...]) -> None:
        """Overlays, what belongs to the VM beside them, and its definition. All of an earlier try is made anew."""
        entry = journal.entry
        self._undefine(entry)
        files = self._write_artifacts(entry, point)
        images = {disk.target: _make_overlay(entry, disk) for disk in disks}
        xml = files.pop(DOMAIN_XML, None)
        if xml is None:
            raise PermanentError(f"point {point.id} of {point.vm} holds no domain XML", hint="restore with --to DIR")
        folder = Path(entry.folder)
        restored = RestoredFiles(folder, "qcow2", images, files)
        text = xml.read_text(encoding="utf-8")
        define_domain(self._connection, text, entry.name, restored, files.get(TPM), self._networks, identity=entry.uuid)
        domain = self._domain(entry)
        self._connection.define(with_backing(domain.XMLDesc(_DEFINITION), entry), entry.name)
        journal.reach("defined")

    def _write_artifacts(self, entry: Boot, point: RestorePoint) -> dict[str, Path]:
        written = {}
        for artifact in point.artifacts:
            path = written[artifact.name] = Path(entry.folder) / artifact.name
            path.write_bytes(self._repository.artifact(artifact))
            path.chmod(0o600)
        return written

    def _start(self, journal: BootJournal) -> None:
        """The journal says "started" first: from then on the images may hold what a guest wrote."""
        domain = self._domain(journal.entry)
        journal.reach("started")
        try:
            domain.create()
        except libvirt.libvirtError as error:
            raise explain(error, journal.entry.name, "starting the VM") from error

    def _let_repository_go(self, entry: Boot) -> None:
        """Everything is in the images: make that durable, and take the repository out of the definition.

        Pausing a VM for a moment is what makes QEMU write out all that it holds of an image, its tables too. One that
        was stopped for want of the repository goes on: the last block job may have ended before anybody saw that.
        """
        domain = self._domain(entry)
        boot_pull.resume_stopped(domain)
        if domain.isActive() and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            with suppress(libvirt.libvirtError):  # it went off just then, which writes out everything as well
                domain.suspend()
                domain.resume()
        for target in entry.targets:
            handle = os.open(entry.overlay(target), os.O_RDONLY | os.O_CLOEXEC)
            os.fsync(handle)
            os.close(handle)
        self._connection.define(without_backing(domain.XMLDesc(_DEFINITION), entry), entry.name)

    def _take_back(self, journal: BootJournal) -> None:
        entry = journal.entry
        self._undefine(entry)
        folder = Path(entry.folder)
        names = [*(f"{target}.qcow2" for target in entry.targets), entry.socket.name]
        with suppress(PermanentError):  # a point that is gone by now: its files stay, they hold nothing of the guest
            names += [artifact.name for artifact in self._repository.point(entry.point).artifacts]
        for name in names:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(TPM_STATE / entry.uuid, ignore_errors=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        journal.end()

    def _undefine(self, entry: Boot) -> None:
        domain = self._connection.find(entry.name)
        if domain is None:
            return
        self._check_ours(domain, entry)
        try:
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(_UNDEFINE)
        except libvirt.libvirtError as error:
            raise explain(error, entry.name, "removing the VM") from error

    def _domain(self, entry: Boot) -> libvirt.virDomain:
        domain = self._connection.domain(entry.name)
        self._check_ours(domain, entry)
        return domain

    @staticmethod
    def _check_ours(domain: libvirt.virDomain, entry: Boot) -> None:
        if domain.UUIDString() != entry.uuid:
            raise PermanentError(
                f"the VM {entry.name} is not the one that was begun from point {entry.point}",
                hint=f"its images are in {entry.folder}; nothing was touched",
            )

    @staticmethod
    def _runs(domain: libvirt.virDomain) -> bool:
        return bool(domain.isActive())


class _Serving:
    """The server, with a socket that QEMU's account may open."""

    def __init__(self, server: Server, socket: Path) -> None:
        self._server = server
        self._socket = socket

    def __enter__(self) -> None:
        self._server.__enter__()
        account = hypervisor_account()
        if account is not None and os.geteuid() == 0:
            shutil.chown(self._socket, account.pw_uid, account.pw_gid)

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()


def _make_overlay(entry: Boot, disk: DiskRecord) -> Path:
    path = entry.overlay(disk.target)
    path.unlink(missing_ok=True)
    backing = Address(entry.socket).uri(disk.target)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", backing, str(path), str(disk.size)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TransientError(f"{path}: {done.stderr.strip()}", hint="see whether there is room in that folder")
    path.chmod(0o600)
    return path


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
