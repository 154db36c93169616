"""Instant restore: a VM runs from the repository at once, and its disks come over while it runs.

Each disk is a qcow2 overlay at its final place, whose backing is the point's disk served over NBD (`serve`). The guest
writes into the overlay; a block job pulls the rest into it and then cuts the backing off. So the overlay is never given
up: what the guest wrote is where it stays. If the server goes away, it is started again while this process lives; else
QEMU waits for it, then pauses the VM at its next read, and `finish` serves again and goes on. Crash behaviour of each
phase: `boot_journal.Phase`.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.restore import boot_pull
from vmcellar.restore.boot_disks import (
    DEFINITION,
    serving,
    with_backing,
    without_backing,
    write_artifacts,
    write_overlays,
)
from vmcellar.restore.boot_journal import Boot, BootJournal
from vmcellar.restore.define import TPM_STATE, define_domain
from vmcellar.restore.domain_xml import KEPT, TPM_ARCHIVE, Networks, RestoredFiles
from vmcellar.restore.noted import refuse_noted
from vmcellar.restore.plan import chosen_disks, survey
from vmcellar.restore.qcow2_overlay import overlay_cluster
from vmcellar.restore.restore import DOMAIN_XML
from vmcellar.restore.thaw import refuse_archived
from vmcellar.sources.libvirt_connection import Connection, explain

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.qcow2 import UsedClusters
    from vmcellar.restore.serve import Opening, Server

log = logging.getLogger(__name__)

_REVIVED_MOST = 5
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
        with serving(self._repository, self._opening, journal.entry, point, disks) as server:
            if journal.entry.phase != "started":
                try:
                    targets = journal.entry.targets
                    plan, used = survey(self._repository, point, targets, False, cancel, overlay_cluster)
                    refuse_archived(self._repository, plan)
                    refuse_noted(self._repository, point, targets, cancel)
                    self._prepare(journal, point, used)
                    self._start(journal)
                except BaseException:
                    if not self._may_have_run(journal.entry):
                        self._take_back(journal)
                    raise
            to_start = time.monotonic() - begun
            started(to_start)
            domain = self._domain(journal.entry)
            keeper = _Keeper(server, journal.entry.name)
            for disk in disks:
                boot_pull.bring_over(domain, journal.entry, disk.target, progress, cancel, keeper.look)
            self._let_repository_go(journal.entry)
        journal.end()
        return BootReport(
            journal.entry.name, point.id, journal.entry.folder, to_start, time.monotonic() - begun, self._runs(domain)
        )

    def abort(self, journal: BootJournal) -> None:
        """Remove the VM and its images, with all that its guest wrote."""
        self._take_back(journal)

    def _prepare(self, journal: BootJournal, point: RestorePoint, used: Mapping[str, UsedClusters]) -> None:
        """Overlays, what belongs to the VM beside them, and its definition. All of an earlier try is made anew."""
        entry = journal.entry
        self._undefine(entry)
        files = write_artifacts(self._repository, point, Path(entry.folder))
        images = write_overlays(entry, used)
        xml = files.pop(DOMAIN_XML, None)
        if xml is None:
            raise PermanentError(f"point {point.id} of {point.vm} holds no domain XML", hint="restore with --to DIR")
        folder = Path(entry.folder)
        restored = RestoredFiles(folder, "qcow2", images, files)
        text = xml.read_text(encoding="utf-8")
        tpm = files.get(TPM_ARCHIVE)
        define_domain(self._connection, text, entry.name, restored, tpm, self._networks, identity=entry.uuid)
        domain = self._domain(entry)
        self._connection.define(with_backing(domain.XMLDesc(DEFINITION), entry), entry.name)
        journal.reach("defined")

    def _start(self, journal: BootJournal) -> None:
        """The journal says "started" first: from then on the images may hold what a guest wrote."""
        domain = self._domain(journal.entry)
        journal.reach("started")
        try:
            domain.create()
        except libvirt.libvirtError as error:
            raise explain(error, journal.entry.name, "starting the VM") from error

    def _may_have_run(self, entry: Boot) -> bool:
        """Whether the VM runs though its start ended in an error, as when Ctrl-C came meanwhile, or nobody can tell."""
        if entry.phase != "started":
            return False
        try:
            domain = self._connection.find(entry.name)
            return domain is not None and bool(domain.isActive())
        except (VmcellarError, libvirt.libvirtError) as error:
            log.warning("%s: whether it runs cannot be told, so it stays: %s", entry.name, error)
            return True

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
        self._connection.define(without_backing(domain.XMLDesc(DEFINITION), entry), entry.name)

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


class _Keeper:
    """Starts a server again that was killed: QEMU comes back to it within its delay, and the guest only waited."""

    def __init__(self, server: Server, vm: str) -> None:
        self._server = server
        self._vm = vm
        self._times = 0

    def look(self) -> None:
        """TransientError when it ends again and again."""
        if not self._server.ended:
            return
        if self._times == _REVIVED_MOST:
            raise TransientError(
                f"{self._vm}: nbdkit, which serves its disks, ended {self._times + 1} times",
                hint=f"the VM waits, nothing is lost; when you know why: vmcellar boot --finish {self._vm}",
            )
        self._times += 1
        log.warning("%s: nbdkit, which serves its disks, ended; it is started again", self._vm)
        self._server.revive()
