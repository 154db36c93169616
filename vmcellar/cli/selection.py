"""Which VMs a backup is for: names from the command line, or what a job's `domains:` selects of libvirt's VMs."""

from __future__ import annotations

from collections.abc import Sequence

from vmcellar.config import Config
from vmcellar.errors import PermanentError, TransientError, UsageError


def vms_to_back_up(config: Config, names: Sequence[str], job: str | None) -> list[str]:
    """The VMs, each once; UsageError when nothing was named, PermanentError when a job selects none."""
    if names:
        return list(dict.fromkeys(names))
    if job is None:
        raise UsageError("no VM named", hint="vmcellar backup VM..., or vmcellar backup --job NAME")
    entry = config.job(job)
    selected = [vm for vm in _running_vms(config.libvirt.uri) if entry.selects(vm)]
    if not selected:
        raise PermanentError(
            f"job {job}: no running VM matches domains: {', '.join(entry.domains)}", hint="see `virsh list`"
        )
    return selected


def _running_vms(uri: str) -> list[str]:
    import libvirt

    try:
        connection = libvirt.openReadOnly(uri)
        try:
            return sorted(
                domain.name() for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            )
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        raise TransientError(f"libvirt at {uri}: {error}", hint="`vmcellar doctor` says what to do") from error
