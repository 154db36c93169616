"""A VM of another host is refused before anything is touched, with what to do instead."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vmcellar.errors import PermanentError
from vmcellar.sources.base import CaptureRequest
from vmcellar.sources.libvirt_source import LibvirtSource
from vmcellar.sources.libvirt_uri import other_host


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("qemu:///system", ""),
        ("qemu+unix:///system?socket=/run/libvirt/libvirt-sock", ""),
        ("qemu+ssh://root@localhost/system", ""),
        ("qemu+ssh://root@kvm2.example:2222/system", "kvm2.example"),
        ("qemu+tls://kvm2/system", "kvm2"),
        ("qemu+tcp://[2001:db8::7]/system", "2001:db8::7"),
        ("qemu://kvm2/system", "kvm2"),
    ],
)
def test_which_uris_name_another_host(uri: str, host: str) -> None:
    assert other_host(uri) == host


def test_this_host_by_its_name_is_no_other() -> None:
    assert other_host(f"qemu+ssh://{socket.gethostname()}/system") == ""


def test_a_backup_is_refused_and_says_where_to_run_it(tmp_path: Path) -> None:
    source = LibvirtSource("qemu+ssh://root@kvm2.invalid/system", tmp_path / "scratch")
    request = CaptureRequest(vm="web1", run_id="r", repository_id="00" * 16)
    with pytest.raises(PermanentError, match=r"web1: .* another host, kvm2\.invalid") as raised:
        source.begin(request)
    assert "worker" in raised.value.hint
    assert not (tmp_path / "scratch").exists()
