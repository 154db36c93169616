"""VMs of a libvirt daemon, on this host or another one, as a `Source`: begin, reattach, reconcile."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import libvirt

from vmcellar.config.remote import RemoteHost
from vmcellar.sources import libvirt_checkpoints, libvirt_job, libvirt_scratch
from vmcellar.sources.base import CaptureRequest, CaptureResult, Reconciled
from vmcellar.sources.libvirt_begin import Beginning, find_domain
from vmcellar.sources.libvirt_capture import LibvirtCapture, clear_job
from vmcellar.sources.libvirt_connection import Connection, explain
from vmcellar.sources.libvirt_remote import Elsewhere, files_in

log = logging.getLogger(__name__)

DEFAULT_RESERVE = 1 << 30


class LibvirtSource:
    """Backs up running domains of one libvirt daemon: over a socket of this host, or from another one by NBD with TLS.

    Any thread may use it; one process at a time works on one VM (`engine.vm_lock`).
    """

    def __init__(
        self,
        uri: str,
        scratch: Path,
        reserve: int = DEFAULT_RESERVE,
        instance: str = "",
        remote: RemoteHost | None = None,
    ) -> None:
        """`scratch` is a folder that QEMU's user can reach; `reserve` bytes must be free in it to begin a backup.

        `instance` is the state directory's own id, whose `vm_lock` the callers hold. `remote` says how disks are read
        where `uri` names another host: then `scratch` has only records, and the storage pool there the space.
        """
        self._elsewhere = Elsewhere.of(uri, remote or RemoteHost())
        self._host = self._elsewhere.host if self._elsewhere else ""
        self._instance = instance
        self._connection = Connection(uri)
        self._scratch = scratch
        self._reserve = reserve

    def domains(self) -> list[str]:
        """The names of all VMs, running or not, sorted."""
        return self._connection.names()

    def begin(self, request: CaptureRequest) -> LibvirtCapture:
        """Hold one instant of all covered disks of a VM that runs, quiesced if its agent answers, or is started paused.

        A job that an earlier attempt of the same run left is ended first: a retry never makes two (pitfall 19). Raises
        TransientError when the VM is busy or libvirt is away, PermanentError with what to do otherwise; then nothing
        temporary is left, but perhaps an orphan checkpoint that the next `reconcile` removes.
        """
        domain = find_domain(self._connection, request)
        try:
            for folder, owner in libvirt_scratch.owned(self._scratch, request.vm, request.repository_id, self._host):
                if owner.run_id == request.run_id:
                    clear_job(domain, files_in(folder))
            return Beginning(
                self._connection, request, self._scratch, self._reserve, self._instance, self._elsewhere
            ).run()
        except libvirt.libvirtError as error:
            raise explain(error, request.vm, "beginning a backup") from error

    def reattach(self, result: CaptureResult) -> LibvirtCapture | None:
        """The capture again if its job still runs on that very VM, else None. Its artifacts are not read again."""
        capture = LibvirtCapture(self._connection, result, {})
        domain = self._connection.find(result.vm)
        if domain is None or domain.UUIDString() != result.vm_uuid or not capture.alive():
            return None
        try:
            capture.hold()
        except OSError:
            return None  # its folder is gone, and so is the scratch space that the instant needs
        return capture

    def reconcile(
        self, vm: str, repository_id: str, kept: Collection[str], live_runs: Collection[str]
    ) -> list[Reconciled]:
        """Clear what dead runs of this repository left on `vm`: jobs, frozen guests, scratch files, checkpoints.

        Jobs and checkpoints of others are never touched, nor is what a live process of another state directory holds;
        while any job runs, checkpoints wait for the next time. See `Source.reconcile`.
        """
        domain = self._connection.find(vm)
        try:
            cleared = self._clear_folders(domain, vm, repository_id, live_runs)
            if domain is not None and _can_change_checkpoints(domain):
                cleared += libvirt_checkpoints.trim(domain, repository_id, kept, live_runs)
        except libvirt.libvirtError as error:
            raise explain(error, vm, "clearing what an earlier run left") from error
        return cleared

    def left_behind(self, repository_id: str) -> set[str]:
        """The VMs that scratch folders of this repository's runs name, living runs too."""
        mine = (repository_id, self._host)
        owners = (owner for _, owner in libvirt_scratch.owners(self._scratch))
        return {owner.vm for owner in owners if (owner.repository_id, owner.host) == mine}

    def _clear_folders(
        self, domain: libvirt.virDomain | None, vm: str, repository_id: str, live_runs: Collection[str]
    ) -> list[Reconciled]:
        cleared: list[Reconciled] = []
        for folder, owner in libvirt_scratch.owned(self._scratch, vm, repository_id, self._host):
            if owner.run_id in live_runs:
                continue
            if owner.instance != self._instance and libvirt_scratch.is_held(folder):
                log.warning("%s: run %s of another state directory is at work: left alone", vm, owner.run_id)
                continue
            actions = clear_job(domain, files_in(folder))
            detail = f"{folder}, checkpoint {owner.checkpoint}"
            cleared += [Reconciled(action, owner.run_id, detail) for action in actions]
        return cleared


def _can_change_checkpoints(domain: libvirt.virDomain) -> bool:
    return bool(domain.isActive()) and libvirt_job.running_socket(domain) is None
