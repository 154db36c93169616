"""A VM of another host, by qemu+ssh and NBD over TLS: a real sshd, a real libvirt behind it, certificates of a test.

The host is `lab.otherhost`; sshd and QEMU's NBD servers listen on 127.0.0.2. Comparisons are of whole disks.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from lab.guest import LabGuest
from lab.otherhost import OtherHost
from lab.paths import vm_folder
from lab.pki import Authority
from lab.require import requires
from lab.sshd import ADDRESS, SshServer
from tests.proof import subprocesses
from tests.proof.cellar import MIB, Cellar, checkpoints, job_runs
from tests.proof.conftest import SMALL_DISKS
from vmcellar.backup.recover import recover
from vmcellar.cli.checks.domains import check_domains
from vmcellar.errors import PermanentError
from vmcellar.sources.libvirt_pool import FILES_POOL
from vmcellar.sources.libvirt_remote import Elsewhere

pytestmark = pytest.mark.libvirt

slow = pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="ten seconds together: set VMCELLAR_FAULTS=1")

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

    def cellar(self, name: str, **remote: object) -> Cellar:
        """A vmcellar of this host, which knows the other one by SSH alone."""
        given = {"certificates": str(self.folder / "client"), "ports": PORTS, **remote}
        return Cellar(self.folder / name, {"libvirt": {"uri": self.uri, "remote": given}})

    def assert_nothing_left(self, cellar: Cellar) -> None:
        """No job, no scratch file, no pool but that of the administrator."""
        cellar.assert_let_go(self.guest)
        assert list(self.scratch.iterdir()) == []
        assert [p.name() for p in self.guest.connection.listAllStoragePools() if p.name().startswith(FILES_POOL)] == []


@pytest.fixture(scope="module")
def far(libvirt_daemons: str) -> Iterator[Far]:
    """One other host for all tests of this module; each only adds changes."""
    assert libvirt_daemons
    requires("root")
    requires("sshd")
    with vm_folder("remote") as folder, ExitStack() as stack:
        authority = Authority()
        server = authority.server(folder / "server", ADDRESS)
        authority.client(folder / "client")
        host = stack.enter_context(OtherHost(folder, "far", f'backup_tls_x509_cert_dir = "{server}"\n'))
        ssh = stack.enter_context(SshServer(folder, host))
        scratch = folder / "scratch-pool"
        with closing(libvirt.open(ssh.uri)) as connection:
            pool = f"<pool type='dir'><name>{POOL}</name><target><path>{scratch}</path></target></pool>"
            defined = connection.storagePoolDefineXML(pool)
            defined.build()
            defined.create()
        guest = stack.enter_context(LabGuest(folder, SMALL_DISKS[:2], uri=host.uri))
        guest.start(paused=True)
        guest.poke("vda", MIB, 12 * MIB, seed=1)
        yield Far(folder, host, guest, ssh.uri, authority, scratch)


def test_a_full_one_killed_and_an_incremental_restore_to_every_byte(far: Far) -> None:
    cellar = far.cellar("cellar")
    first = cellar.reference(far.guest)
    full = cellar.backup(far.guest)
    far.guest.poke("vda", 2 * MIB, MIB, seed=2)
    far.guest.poke("vdb", 0, 256 << 10, seed=3)
    second = cellar.reference(far.guest)

    ran = subprocesses.run(cellar, far.guest.name, "--at", "vmcellar.backup.stages:export", "--signal", "SIGKILL")
    assert ran.code == -signal.SIGKILL
    assert job_runs(far.guest)
    assert list(far.scratch.iterdir()) != []
    recover(cellar.new_engine())
    far.assert_nothing_left(cellar)

    incremental = cellar.backup(far.guest)
    points = cellar.points(far.guest)
    assert points[1].parent == points[0].id
    assert incremental.bytes_read < full.bytes_read / 4
    assert {artifact.name for artifact in points[1].artifacts} >= {"domain.xml", "kernel", "initrd"}
    cellar.assert_restores(full.id, first)
    cellar.assert_restores(incremental.id, second)
    cellar.assert_nothing_left(far.guest)
    far.assert_nothing_left(cellar)


@slow
def test_a_host_of_another_authority_is_refused_and_the_vm_let_go(far: Far) -> None:
    stranger = far.folder / "stranger"
    Authority().client(stranger)
    cellar = far.cellar("wrong", certificates=str(stranger))
    before = checkpoints(far.guest)
    with pytest.raises(PermanentError, match=rf"{far.guest.name}: vda: no TLS connection"):
        cellar.backup(far.guest)
    far.assert_nothing_left(cellar)
    recover(cellar.new_engine(), far.guest.name)
    assert checkpoints(far.guest) == before


@slow
def test_a_port_that_somebody_took_meanwhile_is_left_for_another(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    cellar = far.cellar("ports")
    expected = cellar.reference(far.guest)
    with socket.create_server((ADDRESS, 0)) as other, socket.create_server((ADDRESS, 0)) as gone:
        ports = [other.getsockname()[1], gone.getsockname()[1]]
        gone.close()
        monkeypatch.setattr(Elsewhere, "_ports", lambda _self: iter([ports.pop(0)]))
        summary = cellar.backup(far.guest)
    assert ports == []
    cellar.assert_restores(summary.id, expected)


@slow
def test_what_lacks_is_named_with_what_to_type(far: Far) -> None:
    for remote, words in (
        ({"scratch_pool": "none"}, "pool-define-as none dir"),
        ({"certificates": str(far.folder)}, "remote-hosts.md"),
    ):
        with pytest.raises(PermanentError) as raised:
            far.cellar("lacking", **remote).backup(far.guest)
        assert words in raised.value.hint


def test_doctor_looks_at_the_other_host(far: Far) -> None:
    settings = far.cellar("doctor").config.libvirt
    found = {finding.check: finding for finding in check_domains(settings)}
    assert {found[name].status for name in ("libvirt", "QEMU", "certificates")} == {"ok"}
    assert str(far.scratch) in found["scratch pool"].detail
    assert f"domain {far.guest.name}" in found
