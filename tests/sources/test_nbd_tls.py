"""NBD over TLS against a real qemu-nbd: both sides must show a certificate of the one CA, and nothing less will do."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from lab.pki import Authority
from lab.waiting import wait_for
from vmcellar.errors import PermanentError, TransientError
from vmcellar.memory import BufferPool
from vmcellar.sources.libvirt_remote import RemoteJob, check_door
from vmcellar.sources.nbd import ExportReader, tls_uri

ADDRESS = "127.0.0.2"
SIZE = 1 << 20


@contextmanager
def serving(image: Path, *options: str, address: str = ADDRESS) -> Iterator[int]:
    """A qemu-nbd on a port of `address`; the port."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
    command = ["qemu-nbd", "--read-only", "--persistent", "--shared=4", "--format=raw", "--export-name=vda"]
    process = subprocess.Popen(
        [*command, f"--bind={address}", f"--port={port}", *options, image], stderr=subprocess.PIPE
    )
    try:
        wait_for(lambda: process.poll() is not None or answers(address, port), "qemu-nbd to serve")
        assert process.poll() is None
        yield port
    finally:
        process.kill()
        process.communicate()


def answers(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def tls(folder: Path, verify: str = "yes") -> tuple[str, str]:
    """The options with which qemu-nbd asks everybody for a certificate, as libvirt has QEMU do, or nobody."""
    return f"--object=tls-creds-x509,id=tls0,endpoint=server,dir={folder},verify-peer={verify}", "--tls-creds=tls0"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_a_disk_is_read_by_who_has_a_certificate(authority: Authority, image: Path, tmp_path: Path) -> None:
    client = authority.client(tmp_path / "client")
    got = bytearray()
    server = authority.server(tmp_path / "server", ADDRESS)
    with serving(image, *tls(server)) as port, ExportReader(tls_uri(ADDRESS, port, "vda", client)) as reader:
        reader.read([(0, SIZE)], BufferPool(SIZE), lambda _offset, data: got.extend(data))
    assert got == image.read_bytes()


@pytest.mark.parametrize("wrong", ["authority of the server", "name of the server"])
def test_a_server_that_cannot_prove_who_it_is_is_refused(
    authority: Authority, image: Path, tmp_path: Path, wrong: str
) -> None:
    issuer = Authority() if wrong == "authority of the server" else authority
    names = ["kvm2.example"] if wrong == "name of the server" else [ADDRESS]
    client = authority.client(tmp_path / "client")
    server = issuer.server(tmp_path / "server", *names)
    refused = pytest.raises(PermanentError, match="web1: vda: no TLS connection")
    with serving(image, *tls(server)) as port, refused as raised:
        ExportReader(tls_uri(ADDRESS, port, "vda", client), disk="web1: vda")
    assert "certificates of one CA" in raised.value.hint


def test_who_has_no_certificate_is_not_let_in(authority: Authority, image: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    server = authority.server(tmp_path / "server", ADDRESS)
    stranger.mkdir()
    (stranger / "ca-cert.pem").write_bytes((server / "ca-cert.pem").read_bytes())
    with serving(image, *tls(server)) as port, pytest.raises((PermanentError, TransientError)):
        ExportReader(tls_uri(ADDRESS, port, "vda", stranger))


@pytest.mark.parametrize("verify", ["no", "yes"])
def test_a_server_that_lets_strangers_in_is_found_out(
    authority: Authority, image: Path, tmp_path: Path, verify: str
) -> None:
    client, server = authority.client(tmp_path / "client"), authority.server(tmp_path / "server", ADDRESS)
    refused = pytest.raises(PermanentError, match=r"web1: .* whoever connects") if verify == "no" else nullcontext()
    with serving(image, *tls(server, verify), f"--export-name={tmp_path.name}.vda") as port, refused:
        check_door(RemoteJob(tmp_path, ADDRESS, ADDRESS, port, "", "pool", client), "vda", "web1")


def test_a_job_that_has_the_port_of_another_does_not_serve_its_disks(
    authority: Authority, image: Path, tmp_path: Path
) -> None:
    """The VM ended, and another job got its port: a reader that connects again is refused, not given other bytes."""
    client, server = authority.client(tmp_path / "client"), authority.server(tmp_path / "server", ADDRESS)
    with serving(image, *tls(server), "--export-name=vmc-theirs.vda") as port:
        theirs = RemoteJob(tmp_path / "vmc-theirs", ADDRESS, ADDRESS, port, "", "pool", client)
        mine = replace(theirs, folder=tmp_path / "vmc-mine")
        ExportReader(theirs.uri("vda")).close()
        with pytest.raises((PermanentError, TransientError)):
            ExportReader(mine.uri("vda"))


def test_a_server_without_tls_is_refused(authority: Authority, image: Path, tmp_path: Path) -> None:
    client = authority.client(tmp_path / "client")
    with serving(image) as port, pytest.raises(PermanentError, match="no TLS connection"):
        ExportReader(tls_uri(ADDRESS, port, "vda", client))


def test_nobody_there_is_worth_a_retry(authority: Authority, tmp_path: Path) -> None:
    client = authority.client(tmp_path / "client")
    with socket.socket() as bound:
        bound.bind((ADDRESS, 0))  # and not listening: refused at once
        with pytest.raises(TransientError):
            ExportReader(tls_uri(ADDRESS, bound.getsockname()[1], "vda", client))


def test_a_disk_never_goes_over_the_network_readable() -> None:
    with pytest.raises(PermanentError, match=r"web1: vda: NBD from 192\.0\.2\.1 without TLS is refused"):
        ExportReader("nbd://192.0.2.1:10809/vda", disk="web1: vda")


def test_a_tunnel_that_ends_here_needs_no_tls(image: Path) -> None:
    with serving(image, address="127.0.0.1") as port, ExportReader(f"nbd://127.0.0.1:{port}/vda") as reader:
        assert reader.size == SIZE
