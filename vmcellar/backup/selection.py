"""Which VMs a backup is for, and how: names, or what a job's `domains:` selects of libvirt's VMs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vmcellar.backup.model import BackupRequest, Mode
from vmcellar.config.model import Config
from vmcellar.errors import PermanentError, TransientError, UsageError

log = logging.getLogger(__name__)


def job_requests(config: Config, names: Sequence[str], job: str, *, full: bool) -> list[BackupRequest]:
    """One request per VM, each VM once.

    UsageError when nothing was named or the job is unknown, PermanentError when a job selects no running VM or
    stores on a tier that is not there, TransientError when libvirt does not answer. VMs that match but are off are
    logged by name.
    """
    return [_request(config, vm, job, full) for vm in _vms(config, names, job)]


def _vms(config: Config, names: Sequence[str], job: str) -> list[str]:
    if names:
        return list(dict.fromkeys(names))
    if not job:
        raise UsageError("no VM named", hint="vmcellar backup VM..., or vmcellar backup --job NAME")
    entry = config.job(job)
    running, off = _known_vms(config.libvirt.uri)
    selected = [vm for vm in running if entry.selects(vm)]
    left_out = [vm for vm in off if entry.selects(vm)]
    if left_out:
        log.warning("job %s: not running, so not backed up: %s", job, ", ".join(left_out))
    if not selected:
        raise PermanentError(
            f"job {job}: no running VM matches domains: {', '.join(entry.domains)}", hint="see `virsh list --all`"
        )
    return selected


def _request(config: Config, vm: str, job: str, full: bool) -> BackupRequest:
    if not job:
        return BackupRequest(vm, "full" if full else "auto")
    entry = config.job(job)
    if not config.is_hot(entry.storage):
        raise PermanentError(
            f"job {job}: storage {entry.storage}: this version stores on the tier hot only",
            hint="set `storage: hot`, or make this the tier hot (docs/tiers.md); nothing was backed up",
        )
    if entry.mode in ("incremental", "differential"):
        log.info("job %s: mode %s is done as auto: every point restores without the others", job, entry.mode)
    mode: Mode = "full" if full or entry.mode == "full" else "auto"
    return BackupRequest(vm, mode, job, exclude_disks=entry.excluded_disks(vm), compression=entry.compression)


def _known_vms(uri: str) -> tuple[list[str], list[str]]:
    """The running VMs and those that are off, sorted."""
    import libvirt  # noqa: PLC0415  (only where VMs are)

    try:
        connection = libvirt.openReadOnly(uri)
        try:
            domains = connection.listAllDomains()
            running = sorted(domain.name() for domain in domains if domain.isActive())
            return running, sorted(domain.name() for domain in domains if not domain.isActive())
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        raise TransientError(f"libvirt at {uri}: {error}", hint="`vmcellar doctor` says what to do") from error
