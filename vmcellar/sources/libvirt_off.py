"""A VM that is off, started paused so that its disks can be held like those of any other, and stopped again.

QEMU runs, its vCPUs do not: the guest executes no instruction, its disks stay as they were, and checkpoints work as on
a VM that runs. Whoever wants the VM meanwhile resumes it, and it then runs on. Proxmox reads stopped VMs the same way.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt

from vmcellar.boot import boot_id
from vmcellar.errors import PermanentError, TransientError
from vmcellar.sources.libvirt_connection import explain
from vmcellar.sources.libvirt_uri import other_host

log = logging.getLogger(__name__)

REASON = "the VM was off: its disks are as it left them"
_TAKES_DEVICES = "it was given devices of this host, which a start would take, even a paused one"
_HOST_DEVICES = (
    "devices/hostdev",
    "devices/interface[@type='hostdev']",
    "devices/interface[@type='vdpa']",
    "devices/interface/source[@mode='passthrough']",
)
_SAVED = "it has a saved state (managed save), which a start would wake up"


def start_paused(domain: libvirt.virDomain, marker: Path) -> bool:
    """Start QEMU for a VM that is off, with its vCPUs stopped; False if somebody else started the VM first.

    The file `marker` lies there from before the start: should this process die, it says why the VM is on.
    PermanentError where a start would do more than open its disks, and with libvirt's reason where it fails.
    """
    vm = domain.name()
    problem = _problem(domain)
    if problem:
        raise PermanentError(
            f"{vm}: the VM is off, and is not started paused for a backup: {problem}",
            hint=f"type `virsh start {vm}` and back it up while it runs",
        )
    marker.touch()
    try:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    except libvirt.libvirtError as error:
        marker.unlink()
        if domain.isActive():
            return False
        raise explain(error, vm, "starting it paused, as it was off") from error
    marker.write_text(_this_start(domain))
    log.info("%s: was off, and is started paused for the backup", vm)
    return True


def stop(domain: libvirt.virDomain, marker: Path) -> bool:
    """Stop a VM that `start_paused` started with this marker, unless it has run since; whether it was stopped.

    QEMU is asked to end and never killed, so its bitmaps are stored. TransientError while it does not end.
    """
    vm = domain.name()
    try:
        if not domain.isActive():
            return False
        if marker.read_text() not in ("", _this_start(domain)) or not has_never_run(domain):
            log.info("%s: somebody let it run since the backup began: it stays on", vm)
            return False
        domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and not domain.isActive():
            return False
        raise TransientError(
            f"{vm}: it was started paused for a backup, and could not be stopped: {error}",
            hint=f"`vmcellar recover` tries again; by hand: `virsh destroy {vm} --graceful` if it is still paused",
        ) from error
    return True


def has_never_run(domain: libvirt.virDomain) -> bool:
    """Whether an active VM is paused as by a user, and its guest has read and written nothing since it was started.

    A guest that was resumed and paused again has read its disks; if by a hair it has not, it loses nothing either. One
    that comes out of a saved state or a migration is paused for another reason.
    """
    if any(domain.blockStats("")[:4]):  # of all disks together; first, as it may wait for somebody who starts the VM
        return False
    return bool(domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER])


def _problem(domain: libvirt.virDomain) -> str:
    if domain.hasManagedSaveImage():
        return _SAVED
    tree = ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))  # noqa: S314
    return _TAKES_DEVICES if any(tree.find(path) is not None for path in _HOST_DEVICES) else ""


def _this_start(domain: libvirt.virDomain) -> str:
    """What tells this start of the VM from others: the host's boot, and libvirt's number for the running domain.

    Of another host libvirt tells no boot; there `has_never_run` alone tells a later start with the same number.
    """
    boot = other_host(domain.connect().getURI()) or boot_id()
    return f"{boot} {domain.ID()}"
