"""The part of `vmcellar.yaml` that says how VMs of another host are read. Used only where `libvirt: uri:` names one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from vmcellar.config.secrets import HostPath
from vmcellar.config.section import Section

_PORTS = re.compile(r"^(\d{1,5})-(\d{1,5})$")
_HIGHEST = 65535


def _port_range(text: str) -> str:
    match = _PORTS.match(text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < first <= last <= _HIGHEST:
        raise ValueError(f"{text} is no range of ports: write FIRST-LAST, such as 10809-10840")
    return text


class RemoteHost(Section):
    """NBD with TLS from the other host, which is libvirt's `uri`."""

    certificates: HostPath = Field(
        default=Path("/etc/vmcellar/pki"),
        description="a folder of this host with ca-cert.pem, client-cert.pem and client-key.pem",
    )
    scratch_pool: str = Field(
        default="vmcellar",
        min_length=1,
        description="a storage pool (type dir) of the other host, in which QEMU keeps what the guest overwrites",
    )
    address: str = Field(
        default="", description="the other host's address on which QEMU serves; default: that of the URI's host"
    )
    ports: Annotated[str, AfterValidator(_port_range)] = Field(
        default="10809-10840", description="ports of the other host that QEMU may serve on, one for each VM at once"
    )

    def port_range(self) -> range:
        """All ports, as a range."""
        first, _, last = self.ports.partition("-")
        return range(int(first), int(last) + 1)
