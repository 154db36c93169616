"""libvirt and its domains: versions, guest agents, disks that no bitmap can track, snapshots.

Reads only; nothing is sent to a guest but `guest-ping`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

from vmcellar.cli.checks.finding import Finding
from vmcellar.cli.checks.remote import certificate_findings, name_finding, remote_findings
from vmcellar.config.model import Libvirt
from vmcellar.errors import TransientError
from vmcellar.sources.libvirt_disks import beside_disks

LIBVIRT_LEAST = 7_002_000
QEMU_LEAST = 4_002_000
AGENT_SECONDS = 3
_AGENT_CHANNEL = "org.qemu.guest_agent.0"
_SOURCE_KEYS = ("file", "dev", "name", "volume", "dir")


def check_domains(settings: Libvirt) -> Iterator[Finding]:
    """The hypervisor's findings, then those of each domain."""
    uri = settings.uri
    try:
        import libvirt
    except ImportError as error:
        yield Finding("libvirt", "failed", f"Python cannot import libvirt: {error}", "apt install python3-libvirt")
        return
    from vmcellar.sources.libvirt_keepalive import open_alive
    from vmcellar.sources.libvirt_uri import other_host

    host = other_host(uri)
    if host:
        yield from certificate_findings(settings.remote.certificates)
        yield name_finding(host)
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = open_alive(uri)
    except libvirt.libvirtError as error:
        yield Finding("libvirt", "failed", f"{uri}: {error}", _connection_remedy(str(error), host))
        return
    except TransientError as error:
        yield Finding("libvirt", "failed", error.message, error.hint)
        return
    try:
        yield from _versions(connection, uri)
        if host:
            yield from remote_findings(connection, settings)
        for domain in sorted(connection.listAllDomains(), key=lambda one: str(one.name())):
            yield from _domain(domain, libvirt)
    finally:
        connection.close()


def _connection_remedy(message: str, host: str) -> str:
    if host:
        return f"log in there without a question first: ssh {host}; then virsh -c URI list (docs/remote-hosts.md)"
    if "denied" in message.lower():
        return "run as root, or add this user to the group libvirt (then log in again)"
    return "start it: systemctl start libvirtd (without systemd: virtlogd -d; libvirtd -d)"


def _versions(connection: Any, uri: str) -> Iterator[Finding]:
    for name, number, least in (
        ("libvirt", connection.getLibVersion(), LIBVIRT_LEAST),
        ("QEMU", connection.getVersion(), QEMU_LEAST),
    ):
        detail = f"{uri}, version {_version(number)}"
        if number < least:
            yield Finding(name, "failed", detail, f"upgrade to {_version(least)} or later: incremental backups need it")
        else:
            yield Finding(name, "ok", detail)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _domain(domain: Any, libvirt: Any) -> Iterator[Finding]:
    name = f"domain {domain.name()}"
    try:
        tree = ET.fromstring(domain.XMLDesc(0))  # noqa: S314 (libvirt's own XML)
        running = bool(domain.isActive())
        yield (
            _agent(name, domain, tree)
            if running
            else Finding(name, "note", "not running; it is backed up when it runs, or paused (when_off: start-paused)")
        )
        yield from disk_findings(name, tree)
        if domain.snapshotNum(0):
            remedy = (
                "after `virsh snapshot-revert` take a full: vmcellar backup --full; a revert may leave the VM shut off"
            )
            yield Finding(name, "warning", "has libvirt snapshots: reverting to one breaks change tracking", remedy)
    except libvirt.libvirtError as error:
        yield Finding(
            name, "warning", f"cannot be looked at: {error}", "it may have just been removed; run doctor again"
        )


def _agent(name: str, domain: Any, tree: ET.Element) -> Finding:
    channel = tree.find(f"devices/channel/target[@name='{_AGENT_CHANNEL}']")
    crash = "backups are crash-consistent"
    if channel is None:
        return Finding(
            name, "warning", f"no channel for a guest agent: {crash}", f"add a channel named {_AGENT_CHANNEL}"
        )
    if channel.get("state") != "connected" or not _ping(domain):
        return Finding(
            name, "warning", f"guest agent does not answer: {crash}", "in the guest: apt install qemu-guest-agent"
        )
    return Finding(name, "ok", "running, guest agent answers")


def _ping(domain: Any) -> bool:
    import libvirt
    import libvirt_qemu

    try:
        libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', AGENT_SECONDS, 0)
    except libvirt.libvirtError:
        return False
    return True


def disk_findings(name: str, tree: ET.Element) -> Iterator[Finding]:
    """A finding for every disk that is read in full each time, or not at all (pitfall 13)."""
    for disk in tree.iterfind("devices/disk"):
        target_element = disk.find("target")
        target = target_element.get("dev", "?") if target_element is not None else "?"
        device = disk.get("device", "disk")
        if device == "lun":
            yield _uncovered(name, target, "a SCSI device passed through")
        elif device == "disk":
            yield from _format_finding(name, target, disk)
    for target, what in beside_disks(tree):
        yield _uncovered(name, target, what)


def _uncovered(name: str, target: str, what: str) -> Finding:
    remedy = "attach it as a virtio disk, or name it under exclude: (disk:TARGET) to accept this"
    return Finding(name, "warning", f"{target} is {what}: it is not backed up", remedy)


def _format_finding(name: str, target: str, disk: ET.Element) -> Iterator[Finding]:
    driver = disk.find("driver")
    kind = driver.get("type", "raw") if driver is not None else "raw"
    if kind != "qcow2":
        source = disk.find("source")
        path = next((source.get(key, "") for key in _SOURCE_KEYS if source.get(key)), "") if source is not None else ""
        remedy = "works as it is, in full each time; for incrementals: qemu-img convert -O qcow2, VM shut off"
        yield Finding(
            name, "note", f"{target}{f' ({path})' if path else ''} is {kind}, which keeps no change tracking", remedy
        )
