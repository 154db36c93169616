"""A VM of another host, by qemu+ssh and NBD over TLS: a real sshd, a real libvirt behind it, certificates of a test.

The host is `lab.otherhost`; sshd and QEMU's NBD servers listen on 127.0.0.2. Comparisons are of whole disks.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.paths import vm_folder
from lab.pki import Authority
from lab.require import requires
from lab.sshd import ADDRESS
from tests.docs.playing import Scene, play
from tests.docs.terminal import Terminal
from tests.proof import subprocesses
from tests.proof.cellar import MIB, checkpoints, job_runs
from tests.proof.far import Far, far_host
from vmcellar.backup.recover import recover
from vmcellar.cli.checks.domains import check_domains
from vmcellar.errors import PermanentError
from vmcellar.sources.libvirt_remote import Elsewhere

pytestmark = pytest.mark.libvirt

slow = pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="ten seconds together: set VMCELLAR_FAULTS=1")


@pytest.fixture(scope="module")
def far(libvirt_daemons: str) -> Iterator[Far]:
    """One other host for all tests of this module; each only adds changes."""
    assert libvirt_daemons
    with vm_folder("remote") as folder, far_host(folder) as made:
        yield made


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
    assert {found[name].status for name in ("libvirt", "QEMU", "certificates", "address")} == {"ok"}
    assert str(far.scratch) in found["scratch pool"].detail
    assert f"domain {far.guest.name}" in found


def test_the_page_remote_hosts(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/remote-hosts.md, typed as it stands: a key, certificates, the pool for scratch files on the other host."""
    requires("certtool")
    terminal = Terminal(tmp_path, monkeypatch, capsys)
    key = terminal.home / ".ssh" / "kvm2"
    key.parent.mkdir()
    terminal.words |= {
        f"qemu+ssh://root@kvm2.example/system?keyfile={key}&no_tty=1": far.uri,
        "vmcellar": "of-the-page",
    }
    listed = """virsh -c 'qemu+ssh://root@kvm2.example/system?keyfile=/root/.ssh/kvm2&no_tty=1' list --all"""
    play("remote-hosts.md", terminal, {listed: Scene([far.guest.name])})
    assert key.exists()
    greet(terminal.home / "pki")
    pool = far.guest.connection.storagePoolLookupByName("of-the-page")
    assert (pool.isActive(), pool.autostart()) == (1, 1)
    pool.destroy()
    pool.undefine()


def greet(pki: Path) -> None:
    """Who has a certificate of the page and who has its other one believe each other, by the name that it bears."""
    ends = []
    for purpose, name in ((ssl.Purpose.CLIENT_AUTH, "server"), (ssl.Purpose.SERVER_AUTH, "client")):
        context = ssl.create_default_context(purpose, cafile=str(pki / "ca-cert.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(pki / f"{name}-cert.pem", pki / f"{name}-key.pem")
        ends.append(context)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ends[0].wrap_bio(there, back, server_side=True)
    client = ends[1].wrap_bio(back, there, server_hostname="kvm2.example")
    for end in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    assert client.version() == server.version() == "TLSv1.3"
    client.write(b"hello")
    assert server.read() == b"hello"
