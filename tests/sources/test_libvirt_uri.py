"""What a libvirt URI says of the host, and that nothing gives files of this host to the libvirt of another one."""

from __future__ import annotations

import socket

import pytest

from vmcellar.errors import PermanentError
from vmcellar.restore.in_use import machines_at
from vmcellar.sources.libvirt_uri import other_host, refuse_other_host, unverified


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


@pytest.mark.parametrize(("query", "found"), [("no_verify=1", True), ("no_verify=0", False), ("no_tty=1", False)])
def test_an_uri_may_ask_for_no_check_of_the_host(query: str, found: bool) -> None:
    assert unverified(f"qemu+ssh://root@kvm2/system?{query}") is found


def test_what_puts_files_here_before_libvirt_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(PermanentError, match=r"defining web1: .* another host, kvm2\.invalid") as raised:
        refuse_other_host("qemu+ssh://root@kvm2.invalid/system", "defining web1")
    assert "restore POINT --to DIR" in raised.value.hint


def test_disks_of_this_host_are_not_overwritten_when_only_another_hosts_vms_can_be_asked() -> None:
    with pytest.raises(PermanentError, match="overwriting disks of this host"):
        machines_at("qemu+ssh://root@kvm2.invalid/system")
