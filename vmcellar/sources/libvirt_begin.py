"""The beginning of a capture: plan, freeze, begin the job, thaw, describe. One use per capture."""

from __future__ import annotations

import os
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

import libvirt
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from vmcellar.errors import PermanentError
from vmcellar.sources import (
    libvirt_artifacts,
    libvirt_checkpoints,
    libvirt_job,
    libvirt_off,
    libvirt_pool,
    libvirt_scratch,
)
from vmcellar.sources.base import CaptureRequest, CaptureResult, SourceDisk
from vmcellar.sources.libvirt_agent import Quiesce
from vmcellar.sources.libvirt_capture import LibvirtCapture, clear_job
from vmcellar.sources.libvirt_connection import BusyError, Connection, explain
from vmcellar.sources.libvirt_disks import Layout, decide, read_layout
from vmcellar.sources.libvirt_job import JobFiles
from vmcellar.sources.libvirt_remote import Elsewhere, PortTakenError, RemoteJob, check_door, files_in, is_served
from vmcellar.sources.libvirt_scratch import Hold
from vmcellar.sources.nbd import export_size

BUSY_ATTEMPTS = 4
"""Each waits 30 s in libvirt for the domain's lock, plus the pauses between."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the job will hold: decided disks, and the names of what it leaves out."""

    layout: Layout
    disks: tuple[SourceDisk, ...]
    parent: str | None

    @property
    def others(self) -> list[str]:
        return [disk.target for disk in self.layout.uncovered]

    @property
    def tracked(self) -> list[str]:
        return [disk.target for disk in self.disks if disk.tracked]

    @property
    def untracked(self) -> list[str]:
        return [disk.target for disk in self.disks if not disk.tracked]


class Beginning:
    """Begins one capture of a domain for `request`; one that is off is started paused first, if that is allowed."""

    def __init__(
        self,
        connection: Connection,
        request: CaptureRequest,
        scratch: Path,
        reserve: int,
        instance: str,
        elsewhere: Elsewhere | None,
    ) -> None:
        """`scratch` is the folder for socket and scratch files, in which `reserve` bytes must be free. With `elsewhere`
        both are on another host, and what is here is the record of whose they are.
        """
        self._instance = instance
        self._elsewhere = elsewhere
        self._connection = connection
        self._request = request
        self._base = scratch
        self._reserve = reserve
        self._domain = find_domain(connection, request)
        self._was_off = not self._domain.isActive()
        self._name = libvirt_checkpoints.new_name(request.repository_id)

    def run(self) -> LibvirtCapture:
        """Begin; everything temporary is gone again when it fails."""
        if not self._was_off:
            libvirt_job.refuse_if_busy(self._domain)
        owner = libvirt_scratch.Owner(
            self._request.vm,
            self._domain.UUIDString(),
            self._request.run_id,
            self._request.repository_id,
            self._name,
            self._instance,
            self._elsewhere.host if self._elsewhere else "",
        )
        folder, hold = libvirt_scratch.create(self._base, owner, self._file_owner())
        files = JobFiles(folder)
        try:
            if self._elsewhere is not None:
                files = self._elsewhere.job(folder, self._domain.connect(), self._request.vm)
            if self._was_off:
                self._start_paused(folder)
            plan = self._plan(self._request.force_full)
            self._check_space(files, [disk.size for disk in plan.disks])
            return self._begin(plan, files, hold)
        except BaseException:
            domain = self._connection.find(self._request.vm)  # over a new connection, if the old one broke
            clear_job(domain, files_in(folder))
            raise

    def _start_paused(self, folder: Path) -> None:
        self._was_off = libvirt_off.start_paused(self._domain, folder / libvirt_scratch.STARTED_MARKER)
        kept = [checkpoint.name for checkpoint in self._request.chain]
        libvirt_checkpoints.trim(self._domain, self._request.repository_id, kept, ())
        user = self._file_owner()
        libvirt_scratch.give(folder, user)
        libvirt_scratch.check_reachable(folder, user)

    def _file_owner(self) -> tuple[int, int]:
        """Who writes in the job's folder: QEMU, where it runs on this host."""
        return (os.getuid(), os.getgid()) if self._elsewhere else qemu_user(self._domain.XMLDesc(0))

    def _check_space(self, files: JobFiles, sizes: list[int]) -> None:
        vm = self._request.vm
        if isinstance(files, RemoteJob):
            libvirt_pool.check_space(self._domain.connect(), files.pool, vm, min(self._reserve, sum(sizes)))
        else:
            libvirt_scratch.check_space(files.folder, vm, sizes, self._reserve)

    def _begin(self, plan: _Plan, files: JobFiles, hold: Hold) -> LibvirtCapture:
        began = time.time()
        try:
            quiesce, files = self._begin_patiently(plan, files)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT:
                raise explain(error, self._request.vm, "beginning the backup job") from error
            plan = self._plan(libvirt_checkpoints.BROKEN)
            quiesce, files = self._begin_patiently(plan, files_in(files.folder))
        plan, resized = self._as_exported(plan, files)
        if isinstance(files, RemoteJob):
            check_door(files, plan.disks[0].target, self._request.vm)
        elsewhere = self._elsewhere is not None
        artifacts, warnings = libvirt_artifacts.collect(self._domain, elsewhere=elsewhere)
        warnings = (*resized, *warnings)
        result = self._result(plan, files, quiesce, began, warnings)
        return LibvirtCapture(self._connection, result, artifacts, hold)

    def _plan(self, everything: str) -> _Plan:
        xml = self._domain.XMLDesc(0)
        layout = read_layout(xml, self._request.excluded, self._domain.connect() if self._elsewhere else None)
        if not layout.disks:
            reasons = "; ".join(f"{disk.target}: {disk.reason}" for disk in layout.uncovered) or "it has no disk"
            raise PermanentError(
                f"{self._request.vm}: nothing to back up: {reasons}",
                hint=f"see `virsh domblklist {self._request.vm} --details`",
            )
        chain = self._request.chain
        parent = None if everything else self._request.parent
        problems: dict[str, str] = {}
        if parent is not None:
            libvirt_checkpoints.restore_metadata(self._domain, chain)
            targets = [disk.target for disk in layout.disks]
            problems = libvirt_checkpoints.parent_problems(self._domain, parent, targets)
        everything = everything or ("" if chain else "first backup")
        previous = {disk.target: disk for disk in self._request.previous}
        disks = tuple(
            decide(disk, self._size(disk), previous.get(disk.target), problems.get(disk.target), everything)
            for disk in layout.disks
        )
        used = parent if any(not disk.full_reason for disk in disks) else None
        return _Plan(layout, disks, used)

    def _size(self, disk: SourceDisk) -> int:
        size: int = self._domain.blockInfo(disk.target)[0]
        return size

    def _as_exported(self, plan: _Plan, files: JobFiles) -> tuple[_Plan, list[str]]:
        """The plan with the sizes that the job has, and a warning for each disk that was resized since it was planned.

        What the job exports is the instant; between the look at the sizes and the begin anybody may resize a disk.
        """
        previous = {disk.target: disk for disk in self._request.previous}
        disks, warnings = [], []
        for planned in plan.disks:
            disk, vm = planned, self._request.vm
            size = export_size(files.uri(disk.target), f"{vm}: {disk.target}")
            if size != disk.size:
                disk = decide(disk, size, previous.get(disk.target), None, disk.full_reason)
                warnings.append(f"{disk.target}: resized from {planned.size} to {size} bytes as the backup began")
            disks.append(disk)
        return replace(plan, disks=tuple(disks)), warnings

    def _begin_patiently(self, plan: _Plan, files: JobFiles) -> tuple[Quiesce, JobFiles]:
        """Freeze, begin, thaw; again with back-off while another operation holds the domain (pitfall 15), or somebody
        took the job's port: on another one then. The files are those that the job has.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(BusyError),
            stop=stop_after_attempt(BUSY_ATTEMPTS),
            wait=wait_exponential_jitter(1, max=15),
            reraise=True,
        )
        for attempt in retrying:
            with attempt:
                try:
                    return self._begin_once(plan, files), files
                except PortTakenError:
                    if self._elsewhere is not None and isinstance(files, RemoteJob):
                        files = self._elsewhere.on_another_port(files)
                    raise
        raise AssertionError("the last attempt raises")

    def _begin_once(self, plan: _Plan, files: JobFiles) -> Quiesce:
        job = libvirt_job.backup_xml(files, plan.disks, plan.others, plan.parent)
        checkpoint = None
        if plan.tracked:
            others = [*plan.untracked, *plan.others]
            checkpoint = libvirt_checkpoints.checkpoint_xml(self._name, self._request.run_id, plan.tracked, others)
        marker = files.folder / libvirt_scratch.FROZEN_MARKER
        quiesce = Quiesce(self._domain, marker, self._request.freeze_timeout, self._find_again)
        try:
            quiesce.freeze()
            self._domain.backupBegin(job, checkpoint, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT:
                raise explain(error, self._request.vm, "beginning the backup job") from error
            if isinstance(files, RemoteJob) and is_served(files.host, files.port):
                taken = f"{self._request.vm}: port {files.port} of {files.host} is in use: {error}"
                raise PortTakenError(taken, hint="set `libvirt: remote: ports:` to ports that are free") from error
            raise
        finally:
            quiesce.thaw()
        return quiesce

    def _find_again(self) -> libvirt.virDomain | None:
        """The domain over a connection that works, when the one before broke."""
        return self._connection.find(self._request.vm)

    def _why_not_quiesced(self, quiesce: Quiesce) -> str:
        return libvirt_off.REASON if self._was_off and libvirt_off.has_never_run(self._domain) else quiesce.reason

    def _result(
        self, plan: _Plan, files: JobFiles, quiesce: Quiesce, began: float, warnings: tuple[str, ...]
    ) -> CaptureResult:
        xml = libvirt_checkpoints.current_xml(self._domain, self._name) if plan.tracked else ""
        return CaptureResult(
            vm=self._request.vm,
            vm_uuid=self._domain.UUIDString(),
            run_id=self._request.run_id,
            repository_id=self._request.repository_id,
            checkpoint=self._name if plan.tracked else "",
            checkpoint_xml=xml,
            parent=plan.parent,
            consistency="quiesced" if quiesce.quiesced else "crash",
            consistency_reason=self._why_not_quiesced(quiesce),
            freeze_seconds=quiesce.seconds,
            began=began,
            socket=files.place,
            scratch=str(files.folder),
            disks=plan.disks,
            uncovered=plan.layout.uncovered,
            previous=self._request.previous,
            warnings=(*plan.layout.warnings, *warnings),
        )


def find_domain(connection: Connection, request: CaptureRequest) -> libvirt.virDomain:
    """The request's domain; PermanentError when there is none, or when it is off and may not be started."""
    return connection.domain(request.vm) if request.start_paused else connection.running(request.vm)


def qemu_user(xml: str) -> tuple[int, int]:
    """The uid and gid that QEMU runs under, from the live domain XML; ours when libvirt does not change them."""
    for label in ET.fromstring(xml).iterfind("seclabel[@model='dac']/label"):  # noqa: S314
        uid, _, gid = (label.text or "").replace("+", "").partition(":")
        if uid.isdigit() and gid.isdigit():
            return int(uid), int(gid)
    return os.getuid(), os.getgid()
