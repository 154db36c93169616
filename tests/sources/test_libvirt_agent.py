"""Freeze and thaw on the real lab guest: it never stays frozen, whatever its agent or our process does (pitfall 17)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import daemons
from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.paths import vm_folder
from lab.waiting import wait_for
from tests.sources.conftest import REPOSITORY
from vmcellar.sources import libvirt_scratch
from vmcellar.sources.base import CaptureRequest
from vmcellar.sources.libvirt_agent import Quiesce, agent_missing
from vmcellar.sources.libvirt_begin import qemu_user
from vmcellar.sources.libvirt_source import LibvirtSource

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]


@dataclass(frozen=True)
class Lab:
    """A running guest with an agent, and a source that can back it up."""

    guest: LabGuest
    source: LibvirtSource
    scratch: Path

    def request(self, run: str, timeout: float = 10.0) -> CaptureRequest:
        return CaptureRequest(self.guest.name, run, REPOSITORY, freeze_timeout=timeout)

    def frozen(self) -> bool:
        return bool(self.guest.agent("guest-fsfreeze-status") == "frozen")

    def folder(self, run: str) -> Path:
        """A scratch folder as a run of that name makes it."""
        domain = self.guest.domain
        owner = libvirt_scratch.Owner(self.guest.name, domain.UUIDString(), run, REPOSITORY, "none")
        return libvirt_scratch.create(self.scratch, owner, qemu_user(domain.XMLDesc(0)))[0]


@pytest.fixture(scope="module")
def lab(libvirt_daemons: str) -> Iterator[Lab]:
    """One guest for all of these tests."""
    assert libvirt_daemons
    with vm_folder("agent") as folder, LabGuest(folder, [DiskSpec("vda", 64 << 20, ext4=True)]) as guest:
        guest.start()
        yield Lab(guest, LibvirtSource(daemons.URI, folder / "s", reserve=1 << 20), folder / "s")


def test_a_guest_with_an_agent_is_quiesced_and_goes_on(lab: Lab) -> None:
    capture = lab.source.begin(lab.request("run-1"))
    assert (capture.result.consistency, capture.result.consistency_reason) == ("quiesced", "")
    assert 0 < capture.result.freeze_seconds < 10
    assert not lab.frozen()
    lab.guest.check("echo more > /data/file; sync")
    capture.end()
    assert list(lab.scratch.iterdir()) == []


def test_a_stopped_agent_is_said(lab: Lab) -> None:
    lab.guest.agent_stop()
    try:
        wait_for(lambda: agent_missing(lab.guest.domain.XMLDesc()), "libvirt to see the agent gone")
        capture = lab.source.begin(lab.request("run-2"))
        capture.end()
    finally:
        lab.guest.agent_start()
    assert capture.result.consistency == "crash"
    assert capture.result.consistency_reason == "the guest agent does not run in the guest"


def test_a_hanging_agent_delays_the_backup_no_longer_than_its_time_limit_and_is_thawed(lab: Lab) -> None:
    lab.guest.agent_hang()
    try:
        capture = lab.source.begin(lab.request("run-3", timeout=1.0))
        marker = Path(capture.result.scratch) / libvirt_scratch.FROZEN_MARKER
        assert capture.result.consistency == "crash"
        assert capture.result.consistency_reason.startswith("the freeze failed: ")
        assert marker.exists(), "a thaw is owed until the agent confirms it"
        assert lab.source.reconcile(lab.guest.name, REPOSITORY, [], ["run-3"]) == []
    finally:
        lab.guest.agent_start()
    wait_for(lambda: not marker.exists(), "the thaw to be confirmed")
    assert not lab.frozen()
    lab.guest.check("echo more > /data/file; sync")
    capture.end()


def test_a_guest_left_frozen_by_a_killed_process_is_thawed(lab: Lab) -> None:
    folder = lab.folder("killed")
    quiesce = Quiesce(lab.guest.domain, folder / libvirt_scratch.FROZEN_MARKER, 60)
    quiesce.freeze()
    assert lab.frozen()
    cleared = lab.source.reconcile(lab.guest.name, REPOSITORY, [], [])
    assert [item.action for item in cleared if item.run_id == "killed"] == ["thawed", "scratch-removed"]
    assert not lab.frozen()
    quiesce.thaw()


def test_a_guest_stands_still_no_longer_than_the_time_limit(lab: Lab) -> None:
    folder = lab.folder("slow")
    quiesce = Quiesce(lab.guest.domain, folder / libvirt_scratch.FROZEN_MARKER, 1)
    quiesce.freeze()
    assert quiesce.reason == ""
    wait_for(lambda: not lab.frozen(), "the guard to thaw the guest")
    quiesce.thaw()
    assert not quiesce.quiesced
    assert quiesce.seconds >= 1
    libvirt_scratch.remove(folder)


def test_a_paused_guest_is_crash_consistent(lab: Lab) -> None:
    with lab.guest.suspended():
        capture = lab.source.begin(lab.request("run-4", timeout=1.0))
        marker = Path(capture.result.scratch) / libvirt_scratch.FROZEN_MARKER
        assert not marker.exists(), "nothing was asked of it, so no thaw is owed"
        capture.end()
    assert (capture.result.consistency, capture.result.consistency_reason) == ("crash", "the VM is paused")
    assert not lab.frozen()
