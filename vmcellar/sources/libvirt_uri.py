"""Whether a libvirt URI names another host. Source: libvirt's documentation of remote URIs."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from vmcellar.errors import PermanentError

_HERE = frozenset({"", "localhost", "127.0.0.1", "::1"})
WORKER_THERE = "run vmcellar on that host, as a worker with a queue of its own (docs/prefect.md, Several hosts)"


def other_host(uri: str) -> str:
    """The host that `uri` names where it is not this one, as in qemu+ssh://root@kvm2/system; else empty."""
    host = urlsplit(uri).hostname or ""
    name = socket.gethostname()
    return "" if host in {*_HERE, name.lower(), name.lower().partition(".")[0]} else host


def refuse_other_host(uri: str, vm: str) -> None:
    """PermanentError where the VM's disks are not to be had here: sockets and scratch files of its job lie there."""
    host = other_host(uri)
    if host:
        raise PermanentError(
            f"{vm}: libvirt at {uri} is that of another host, {host}: a backup job's NBD socket and scratch files lie "
            "there, and NBD over the network is not supported",
            hint=WORKER_THERE,
        )
