"""A name of another host that cannot be looked up: it may pass, so a backup tries again; doctor says it at once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vmcellar.cli.checks.remote import name_finding
from vmcellar.errors import TransientError
from vmcellar.sources.libvirt_remote import address_of
from vmcellar.sources.nbd import ExportReader, tls_uri

UNKNOWN = "kvm2.invalid"
"""RFC 6761: no resolver knows such a name."""


def test_an_address_is_its_own() -> None:
    assert address_of("127.0.0.2") == "127.0.0.2"


@pytest.mark.parametrize("host", [UNKNOWN, "kvm2..example"])
def test_a_name_that_nobody_knows_now_may_be_known_later(host: str) -> None:
    with pytest.raises(TransientError, match=f"{host}: its address cannot be looked up") as raised:
        address_of(host)
    assert f"getent ahosts {host}" in raised.value.hint


@pytest.mark.parametrize("code", [socket.EAI_AGAIN, socket.EAI_FAIL])
def test_so_it_is_where_the_resolver_is_away(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the resolver alone."""

    def fails(*_asked: object, **_how: object) -> None:
        raise socket.gaierror(code, "not now")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(TransientError, match="not now"):
        address_of("kvm2.example")


def test_a_disk_whose_host_is_not_found_in_mid_backup_is_tried_again(tmp_path: Path) -> None:
    """Each segment connects anew. It is not for want of certificates, as no server was reached."""
    with pytest.raises(TransientError, match=f"vda: the NBD server's host is not found.*{UNKNOWN}"):
        ExportReader(tls_uri(UNKNOWN, 10809, "vda", tmp_path), disk="vda")


def test_doctor_says_whether_the_name_is_known() -> None:
    assert name_finding("127.0.0.2").status == "ok"
    unknown = name_finding(UNKNOWN)
    assert unknown.status == "failed"
    assert UNKNOWN in unknown.remedy
