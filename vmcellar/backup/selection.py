"""Which VMs a backup is for, and how: names, or what a job's `domains:` selects of libvirt's VMs.

A VM that is off is left alone unless it may be started paused, but it belongs to its job: the job says what became of
it, and is red while it has no restore point at all (invariant 5 of docs/architecture.md).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmcellar.backup.model import BackupRequest, Mode
from vmcellar.config.model import Config
from vmcellar.errors import PermanentError, UsageError

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Selection:
    """One request per VM that runs, or that was named; `off` are the VMs that the job selects and that are off."""

    requests: tuple[BackupRequest, ...]
    off: tuple[str, ...] = ()

    def without(self, vms: Sequence[str]) -> Selection:
        """The same, but for `vms`."""
        requests = tuple(request for request in self.requests if request.vm not in vms)
        return Selection(requests, tuple(vm for vm in self.off if vm not in vms))

    def only(self, vms: Sequence[str]) -> Selection:
        """The same, but for all others than `vms`."""
        every = (*(request.vm for request in self.requests), *self.off)
        return self.without([vm for vm in every if vm not in vms])


@dataclass(frozen=True, slots=True)
class OffVm:
    """A VM that is off, and its newest verified point: its id, and its instant as text."""

    vm: str
    point: str
    time: str

    def __str__(self) -> str:
        """For reports."""
        return f"off: nothing new was read; its newest verified point is {self.point} of {self.time}"


def select(
    config: Config,
    names: Sequence[str],
    job: str,
    *,
    full: bool = False,
    start_paused: bool = False,
    keep_paths: bool = False,
) -> Selection:
    """The VMs that are named, each once, or those that the job selects; `start_paused` takes those that are off, too.

    With `keep_paths` no path of a guest is left out, whatever the job says.

    UsageError when nothing was named or the job is unknown, PermanentError when a job selects no VM or stores on a
    tier that is not there, TransientError when libvirt does not answer.
    """
    running, off = (list(dict.fromkeys(names)), []) if names else _selected(config, job)
    start_paused = start_paused or (bool(job) and config.job(job).when_off == "start-paused")
    if start_paused:
        running, off = [*running, *off], []
    requests = (_request(config, vm, job, full, start_paused) for vm in running)
    return Selection(tuple(replace(one, exclude_paths=()) if keep_paths else one for one in requests), tuple(off))


def standing_of(repository: Repository, job: str, off: Sequence[str]) -> dict[str, OffVm | PermanentError]:
    """What became of the VMs of a job that are off: their newest verified point, or an error where there is none."""
    points = repository.readable_points() if off else []
    newest = {point.vm: point for point in points if point.verified}  # they come by time
    return {vm: _standing(vm, job, newest.get(vm)) for vm in off}


def _standing(vm: str, job: str, point: RestorePoint | None) -> OffVm | PermanentError:
    if point is not None:
        return OffVm(vm, point.id, f"{point.when:%Y-%m-%d %H:%M:%S} UTC")
    return PermanentError(
        f"{vm}: the VM is off and has no verified restore point at all, though job {job} selects it",
        hint=f"start it once (`virsh start {vm}`) and run the job again, have it read while it is off "
        f"(`vmcellar backup {vm} --start-paused`, or `when_off: start-paused` in the job), or leave it out by name: "
        f'add "!{vm}" to the job\'s `domains:`',
    )


def _selected(config: Config, job: str) -> tuple[list[str], list[str]]:
    if not job:
        raise UsageError("no VM named", hint="vmcellar backup VM..., or vmcellar backup --job NAME")
    entry = config.job(job)
    found = [vm for vm in known_vms(config.libvirt.uri, tags=entry.by_tag) if entry.selects(vm.name, vm.tags)]
    running = [vm.name for vm in found if vm.running]
    off = [vm.name for vm in found if not vm.running]
    if not running and not off:
        raise PermanentError(
            f"job {job}: no VM matches domains: {', '.join(entry.domains)}",
            hint="see `virsh list --all`, and `vmcellar tag VM` for tags",
        )
    return running, off


def _request(config: Config, vm: str, job: str, full: bool, start_paused: bool) -> BackupRequest:
    if not job:
        return BackupRequest(vm, "full" if full else "auto", start_paused=start_paused)
    entry = config.job(job)
    if not config.is_hot(entry.storage):
        raise PermanentError(
            f"job {job}: storage {entry.storage}: this version stores on the tier hot only",
            hint="set `storage: hot`, or make this the tier hot (docs/tiers.md); nothing was backed up",
        )
    if entry.mode == "incremental":
        log.info("job %s: mode %s is done as auto: every point restores without the others", job, entry.mode)
    mode: Mode = "full" if full else "auto" if entry.mode == "incremental" else entry.mode
    return BackupRequest(
        vm,
        mode,
        job,
        exclude_disks=entry.excluded_disks(vm),
        exclude_paths=entry.left_out_paths(),
        compression=entry.compression,
        chunks=entry.chunks,
        start_paused=start_paused,
    )


@dataclass(frozen=True, slots=True)
class KnownVm:
    """A VM that libvirt knows; `tags` are empty when nobody asked for them."""

    name: str
    running: bool
    tags: frozenset[str] = frozenset()


def known_vms(uri: str, *, tags: bool) -> list[KnownVm]:
    """All VMs by name, with their tags if these are wanted: that is one question to libvirt more for each VM."""
    import libvirt  # noqa: PLC0415  (only where VMs are)

    from vmcellar.sources.libvirt_connection import Connection  # noqa: PLC0415
    from vmcellar.sources.libvirt_tags import read_tags  # noqa: PLC0415

    with closing(Connection(uri)) as connection:
        kinds = ((libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE, True), (libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE, False))
        found = [
            KnownVm(domain.name(), running, read_tags(domain) if tags else frozenset())
            for flag, running in kinds
            for domain in connection.domains(flag)
        ]
    return sorted(found, key=lambda vm: vm.name)
