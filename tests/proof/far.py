"""A KVM host that is reached by SSH alone, with a running guest, as a backup host sees it.

The host is `lab.otherhost`; sshd and QEMU's NBD servers listen on 127.0.0.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from lab.guest import LabGuest
from lab.otherhost import OtherHost
from lab.pki import Authority
from lab.require import requires
from lab.sshd import ADDRESS, SshServer
from tests.proof.cellar import MIB, Cellar
from tests.proof.conftest import SMALL_DISKS
from vmcellar.sources.libvirt_pool import FILES_POOL

PORTS = "23809-23816"
POOL = "vmcellar"


@dataclass
class Far:
    """The other host as a backup host sees it. `guest` is reached by its own socket, as only the tests may."""

    folder: Path
    host: OtherHost
    guest: LabGuest
    uri: str
    authority: Authority
    scratch: Path

    def settings(self, **remote: object) -> dict[str, Any]:
        """The section `libvirt` of a backup host that knows this one by SSH alone."""
        given = {"certificates": str(self.folder / "client"), "ports": PORTS, **remote}
        return {"libvirt": {"uri": self.uri, "remote": given}}

    def cellar(self, name: str, **remote: object) -> Cellar:
        """A vmcellar of such a host."""
        return Cellar(self.folder / name, self.settings(**remote))

    def assert_nothing_left(self, cellar: Cellar) -> None:
        """No job, no scratch file, no pool but that of the administrator."""
        cellar.assert_let_go(self.guest)
        assert list(self.scratch.iterdir()) == []
        assert [p.name() for p in self.guest.connection.listAllStoragePools() if p.name().startswith(FILES_POOL)] == []


@contextmanager
def far_host(folder: Path) -> Iterator[Far]:
    """Such a host, with a guest in which no guest code runs. Root alone; `folder` must be one that QEMU may enter."""
    requires("root")
    requires("sshd")
    authority = Authority()
    server = authority.server(folder / "server", ADDRESS)
    authority.client(folder / "client")
    with (
        OtherHost(folder, "far", f'backup_tls_x509_cert_dir = "{server}"\n') as host,
        SshServer(folder, host) as ssh,
    ):
        scratch = folder / "scratch-pool"
        with closing(libvirt.open(ssh.uri)) as connection:
            pool = f"<pool type='dir'><name>{POOL}</name><target><path>{scratch}</path></target></pool>"
            defined = connection.storagePoolDefineXML(pool)
            defined.build()
            defined.create()
        with LabGuest(folder, SMALL_DISKS[:2], uri=host.uri) as guest:
            guest.start(paused=True)
            guest.poke("vda", MIB, 12 * MIB, seed=1)
            yield Far(folder, host, guest, ssh.uri, authority, scratch)
