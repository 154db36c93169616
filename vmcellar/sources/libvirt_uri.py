"""Whether a libvirt URI names another host. Source: libvirt's documentation of remote URIs."""

from __future__ import annotations

import socket
from urllib.parse import parse_qs, urlsplit

from vmcellar.errors import PermanentError

_HERE = frozenset({"", "localhost", "127.0.0.1", "::1"})


def other_host(uri: str) -> str:
    """The host that `uri` names where it is not this one, as in qemu+ssh://root@kvm2/system; else empty."""
    host = urlsplit(uri).hostname or ""
    name = socket.gethostname()
    return "" if host in {*_HERE, name.lower(), name.lower().partition(".")[0]} else host


def unverified(uri: str) -> bool:
    """Whether `uri` asks libvirt not to check who the other host is."""
    return parse_qs(urlsplit(uri).query).get("no_verify", ["0"])[-1] != "0"


def refuse_other_host(uri: str, what: str) -> None:
    """PermanentError where `what` would give files of this host to a libvirt of another one, which has none of them."""
    host = other_host(uri)
    if host:
        raise PermanentError(
            f"{what}: libvirt at {uri} is that of another host, {host}, and the files of this would lie here",
            hint="restore the disks with `vmcellar restore POINT --to DIR`, or run this on a host of its own libvirt "
            "with the same repository (docs/remote-hosts.md)",
        )
