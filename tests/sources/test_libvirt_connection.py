"""What a user is told when libvirt, the VM, or the right to use them is missing; and a daemon that restarts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest

from lab import daemons
from tests.sources.conftest import History
from tests.sources.paused_vm import PausedVm
from vmcellar.errors import PermanentError, TransientError
from vmcellar.sources import libvirt_connection, libvirt_keepalive
from vmcellar.sources.base import Extent
from vmcellar.sources.libvirt_connection import BusyError, Connection, explain

pytestmark = [pytest.mark.libvirt, pytest.mark.usefixtures("libvirt_daemons")]


def test_no_such_vm_names_similar_ones(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    wrong = vm.name[:-1] + "_"
    with pytest.raises(PermanentError, match=f"{wrong}: no such VM") as caught:
        history.source.begin(history.request(vm=wrong))
    assert vm.name in caught.value.hint
    assert vm.name in history.source.domains()


def test_a_vm_that_does_not_run_says_what_to_do(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.connection.defineXML(vm.xml())
    with pytest.raises(PermanentError, match="not running") as caught:
        history.source.begin(history.request())
    assert f"virsh start {vm.name}" in caught.value.hint
    assert "--start-paused" in caught.value.hint


def test_no_daemon_is_transient_and_says_how_to_start_it(tmp_path: Path) -> None:
    connection = Connection(f"qemu+unix:///system?socket={tmp_path}/none")
    with pytest.raises(TransientError, match="no connection to libvirt") as caught:
        connection.names()
    assert "libvirtd" in caught.value.hint


def test_a_socket_without_permission_says_the_group() -> None:
    found = names_as_nobody()
    assert found.startswith("PermanentError")
    assert "usermod -aG libvirt" in found


def test_unknown_driver_is_permanent() -> None:
    with pytest.raises(PermanentError, match="no connection"):
        Connection("nonsense:///system").names()


def test_errors_keep_their_class_across_processes() -> None:
    error = libvirt.libvirtError("x")
    error.err = (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_FROM_QEMU, "cannot acquire", 2, "", None, None, -1, -1)
    found = explain(error, "web", "beginning")
    assert isinstance(found, BusyError)
    assert isinstance(found, TransientError)


def test_a_daemon_restart_in_mid_job_costs_nothing(vm: PausedVm, history: History) -> None:
    """QEMU serves on while libvirtd is away; the job is still ours afterwards and ends as usual."""
    vm.add_qcow2()
    vm.start()
    history.backup()
    vm.io("vda", "write -P 4 0 64k")
    capture = history.source.begin(history.request())
    daemons.restart_libvirtd()
    assert capture.dirty("vda") == [Extent(0, 64 << 10)]
    assert capture.alive()
    capture.end()
    assert not capture.alive()
    history.commit(capture)
    vm.connection = libvirt.open(daemons.URI)
    assert history.backup().result.disks[0].full_reason == ""


def test_a_daemon_that_hangs_is_an_error_in_time(
    vm: PausedVm, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an open connection and over a new one; once it goes on, so do we. VMs run on meanwhile."""
    monkeypatch.setattr(libvirt_keepalive, "INTERVAL_SECONDS", 1)
    monkeypatch.setattr(libvirt_keepalive, "MISSED", 1)
    monkeypatch.setattr(libvirt_keepalive, "OPEN_SECONDS", 0.5)
    monkeypatch.setattr(libvirt_connection, "RECONNECT_SECONDS", 0.5)
    vm.add_qcow2()
    vm.start()
    capture = history.source.begin(history.request())
    opened = Connection(daemons.URI)
    assert opened.find(vm.name)
    with daemons.hanging_libvirtd():
        with pytest.raises(TransientError, match=re.escape(daemons.URI)):
            opened.names()
        with pytest.raises(TransientError, match="did not answer within"):
            capture.end()
        with pytest.raises(TransientError, match="did not answer within") as caught:
            Connection(daemons.URI).names()
        assert "restart libvirtd" in caught.value.hint
    capture.end()
    history.commit(capture)
    assert history.backup().result.disks[0].full_reason == ""
    opened.close()
    vm.connection = libvirt.open(daemons.URI)


def names_as_nobody() -> str:
    """The class and text of the error when the user nobody lists the VMs.

    A process of its own, which imports as root what nobody may not read; a fork of this one would inherit locks that
    libvirt's threads hold, without the threads that give them back.
    """
    answer = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, daemons.URI], check=True, capture_output=True, text=True, timeout=60
    )
    return answer.stdout


AS_NOBODY = """
import os, sys
from vmcellar.errors import VmcellarError
from vmcellar.sources.libvirt_connection import Connection

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    Connection(sys.argv[1]).names()
except VmcellarError as error:
    print(f"{type(error).__name__}: {error}")
"""
