"""A running pull-mode backup job of one domain, as a `Capture`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import libvirt

from vmcellar.sources import libvirt_job, libvirt_off, libvirt_pool, libvirt_scratch
from vmcellar.sources.base import (
    GRANULARITY,
    CaptureResult,
    ClearAction,
    Extent,
    PreviousDisk,
    ScratchPressure,
    SourceDisk,
)
from vmcellar.sources.libvirt_agent import is_thawing, thaw
from vmcellar.sources.libvirt_connection import Connection, explain, is_connection_lost
from vmcellar.sources.libvirt_job import JobFiles
from vmcellar.sources.libvirt_pool import SpaceWatch
from vmcellar.sources.libvirt_remote import RemoteJob, files_in
from vmcellar.sources.libvirt_scratch import Hold
from vmcellar.sources.nbd import DIRTY_BITMAP, ExportReader

log = logging.getLogger(__name__)


class LibvirtCapture:
    """One held instant. Any thread may call it; NBD needs no libvirt, so a restart of its daemon does no harm."""

    def __init__(
        self, connection: Connection, result: CaptureResult, artifacts: Mapping[str, bytes], hold: Hold | None = None
    ) -> None:
        """For a job that runs: see `LibvirtSource.begin` and `reattach`."""
        self._hold = hold
        self._connection = connection
        self._files = files_in(Path(result.scratch))
        self._space = SpaceWatch(self._files.pool) if isinstance(self._files, RemoteJob) else None
        self._looking = threading.Lock()
        self._disks = {disk.target: disk for disk in result.disks}
        self._previous = {disk.target: disk for disk in result.previous}
        self._ending = threading.Lock()
        self.result = result
        self.artifacts = artifacts

    def uri(self, target: str) -> str:
        """The NBD URI of a held disk."""
        return self._files.uri(self._disks[target].target)

    def open_reader(self, target: str) -> ExportReader:
        """A new connection to a held disk; the caller closes it."""
        return ExportReader(self.uri(target), disk=self._name(target))

    def dirty(self, target: str) -> list[Extent] | None:
        """What changed since the parent, and the grown part, which the bitmap calls clean (pitfall 12)."""
        disk = self._disks[target]
        if disk.full_reason:
            return None
        context = DIRTY_BITMAP + libvirt_job.bitmap_name(target)
        with ExportReader(self.uri(target), contexts=(context,), disk=self._name(target)) as reader:
            return with_grown_part(list(reader.extents(context)), disk, self._previous[target])

    def allocated(self, target: str) -> list[Extent]:
        """The whole disk as extents, `zero` where it reads as zero."""
        with self.open_reader(target) as reader:
            return list(reader.extents())

    def scratch_pressure(self) -> ScratchPressure:
        """What the job's scratch files take and what is free beside them; two system calls and one per disk, or
        one question to the other host.
        """
        if self._space is None:
            return libvirt_scratch.pressure(self._files.folder)
        with self._looking:
            try:
                return self._space.look(self._connection.domain(self.result.vm))
            except libvirt.libvirtError as error:
                raise explain(error, self.result.vm, "looking at the scratch space") from error

    def alive(self) -> bool:
        """Whether QEMU still holds this instant."""
        domain = self._connection.find(self.result.vm)
        try:
            return domain is not None and libvirt_job.holds(domain, self._files)
        except libvirt.libvirtError as error:
            raise explain(error, self.result.vm, "looking for the backup job") from error

    def end(self) -> None:
        """End the job, wait for it, remove socket and scratch files. Idempotent; the checkpoint stays.

        Raises TransientError while libvirt does not answer or QEMU does not let go; call it again, or let `reconcile`.
        """
        with self._ending:
            domain = self._connection.find(self.result.vm)
            try:
                clear_job(domain, self._files)
            except libvirt.libvirtError as error:
                raise explain(error, self.result.vm, "ending the backup job") from error
            if self._hold is not None:
                self._hold.release()

    def hold(self) -> None:
        """Hold the job's folder, so that other state directories of this host leave it alone."""
        self._hold = Hold(self._files.folder)

    def _name(self, target: str) -> str:
        return f"{self.result.vm}: {target}"


def clear_job(domain: libvirt.virDomain | None, files: JobFiles) -> list[ClearAction]:
    """End the job with these files, thaw a guest that it left frozen, stop one that was off, remove the files.

    Gives what of it was needed.

    While the guest does not confirm its thaw, or does not stop, or may not yet, the folder stays, for a later
    reconciliation.
    """
    actions: list[ClearAction] = []
    if domain is not None and libvirt_job.end(domain, files):
        actions.append("job-aborted")
    active = domain if domain is not None and domain.isActive() else None
    marker = files.folder / libvirt_scratch.FROZEN_MARKER
    if active is not None and marker.exists():
        if is_thawing(marker) or thaw(active):
            libvirt_scratch.remove_files(files.folder)
            return actions
        actions.append("thawed")
    marker = files.folder / libvirt_scratch.STARTED_MARKER
    if active is not None and marker.exists():
        if libvirt_job.running_socket(active) is not None:
            log.info("%s: was off, and stays on while another backup job reads it", active.name())
            libvirt_scratch.remove_files(files.folder)
            return actions
        if libvirt_off.stop(active, marker):
            actions.append("stopped")
    if files.folder.exists():
        if isinstance(files, RemoteJob) and domain is not None:
            _remove_there(domain, files)
        libvirt_scratch.remove(files.folder)
        actions.append("scratch-removed")
    return actions


def _remove_there(domain: libvirt.virDomain, job: RemoteJob) -> None:
    """Remove scratch files that libvirt left on the other host; what cannot be removed is named."""
    try:
        left = libvirt_pool.remove_files(domain.connect(), job.pool, job.prefix)
    except libvirt.libvirtError as error:
        if is_connection_lost(error):
            raise
        log.warning("%s: files %s* may lie in storage pool %s: %s", domain.name(), job.prefix, job.pool, error)
        return
    if left:
        log.info("%s: removed %s from storage pool %s", domain.name(), ", ".join(left), job.pool)


def with_grown_part(dirty: list[Extent], disk: SourceDisk, previous: PreviousDisk) -> list[Extent]:
    """`dirty` with everything from the last whole bit of the smaller disk on, once the disk grew."""
    if disk.size <= previous.size:
        return dirty
    start = previous.size // GRANULARITY * GRANULARITY
    kept = [Extent(e.offset, min(e.length, start - e.offset)) for e in dirty if e.offset < start]
    return [*kept, Extent(start, disk.size - start)]
