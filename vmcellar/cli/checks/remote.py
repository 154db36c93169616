"""What backups of another host's VMs need: an encrypted connection, certificates, a storage pool there.

Whether QEMU there has its certificates shows only when a job begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from vmcellar.cli.checks.finding import Finding, Status, failed
from vmcellar.cli.checks.host import SCRATCH_LOW
from vmcellar.cli.render.text import size_text
from vmcellar.config.model import Libvirt
from vmcellar.errors import VmcellarError

EXPIRY_NEAR = timedelta(days=30)


def certificate_findings(folder: Path) -> Iterator[Finding]:
    """The files by which this host shows who it is, and how long they are good."""
    from cryptography import x509

    from vmcellar.sources.libvirt_remote import CLIENT_FILES, check_certificates

    try:
        check_certificates(folder)
        ends = min(_end(x509, folder / name) for name in CLIENT_FILES[:2])
    except (VmcellarError, ValueError) as error:
        yield failed("certificates", error, f"look at {folder} with `certtool -i`; docs/remote-hosts.md makes new ones")
        return
    detail = f"{folder}, good until {ends:%Y-%m-%d}"
    left = ends - datetime.now(UTC)
    if left < EXPIRY_NEAR:
        status: Status = "warning" if left > timedelta() else "failed"
        yield Finding("certificates", status, detail, "make new ones: docs/remote-hosts.md")
    else:
        yield Finding("certificates", "ok", detail)


def name_finding(host: str) -> Finding:
    """Whether the name by which the disks are read leads anywhere from here: libvirt's ssh may know it otherwise."""
    from vmcellar.sources.libvirt_remote import address_of

    try:
        return Finding("address", "ok", f"{host} is {address_of(host)} from here")
    except VmcellarError as error:
        return failed("address", error)


def remote_findings(connection: Any, settings: Libvirt) -> Iterator[Finding]:
    """What is asked of the other host, over a connection to its libvirt."""
    import libvirt

    from vmcellar.sources import libvirt_pool
    from vmcellar.sources.libvirt_remote import check_connection
    from vmcellar.sources.libvirt_uri import unverified

    try:
        check_connection(connection, "libvirt")
    except VmcellarError as error:
        yield failed("libvirt", error)
    if unverified(settings.uri):
        remedy = "put the host's key into known_hosts, and take no_verify out of libvirt.uri"
        yield Finding("libvirt", "warning", "no_verify: nobody checks that this is the host it says it is", remedy)
    pool = settings.remote.scratch_pool
    try:
        folder = libvirt_pool.folder_of(connection, pool)
        free = libvirt_pool.free_bytes(connection, pool)
    except (VmcellarError, libvirt.libvirtError) as error:
        yield failed("scratch pool", error)
        return
    detail = f"{pool} on the other host, {folder}, {size_text(free)} free"
    if free < SCRATCH_LOW:
        yield Finding("scratch pool", "warning", detail, "free space there: a full one makes the guest's writes fail")
    else:
        yield Finding("scratch pool", "ok", detail)


def _end(x509: Any, path: Path) -> datetime:
    end: datetime = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    return end
