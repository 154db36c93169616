"""Fixtures of the libvirt source: a paused VM, and a small history of its backups."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lab import daemons
from tests.sources.paused_vm import PausedVm, paused_vm
from vmcellar.memory import BufferPool
from vmcellar.sources.base import Capture, CaptureRequest, CheckpointRecord, PreviousDisk
from vmcellar.sources.libvirt_source import LibvirtSource

REPOSITORY = "0123456789abcdef"


class History:
    """What an engine would remember of one VM in one repository: committed checkpoints and disks."""

    def __init__(self, vm: PausedVm, repository: str = REPOSITORY, instance: str = "") -> None:
        self.vm = vm
        self.repository = repository
        self.source = LibvirtSource(daemons.URI, vm.scratch, 1 << 20, instance)
        self.chain: list[CheckpointRecord] = []
        self.previous: tuple[PreviousDisk, ...] = ()

    @property
    def recorded(self) -> list[str]:
        """The committed checkpoints, oldest first."""
        return [record.name for record in self.chain]

    def request(self, **changes: object) -> CaptureRequest:
        """The next request, incremental if anything is committed."""
        request = CaptureRequest(self.vm.name, secrets.token_hex(4), self.repository, tuple(self.chain), self.previous)
        return replace(request, **changes)  # type: ignore[arg-type]

    def commit(self, capture: Capture) -> None:
        """Remember a capture as a committed point does."""
        result = capture.result
        self.chain.append(CheckpointRecord(result.checkpoint, result.checkpoint_xml))
        self.previous = tuple(PreviousDisk(d.target, d.identity, d.size) for d in result.disks)

    def backup(self, **changes: object) -> Capture:
        """Begin, end and commit."""
        capture = self.source.begin(self.request(**changes))
        capture.end()
        self.commit(capture)
        return capture

    def reconcile(self, *live: str) -> list[str]:
        """Reconcile; the actions taken."""
        found = self.source.reconcile(self.vm.name, self.repository, self.recorded[-3:], live)
        return [item.action for item in found]


@pytest.fixture
def vm(libvirt_daemons: str) -> Iterator[PausedVm]:
    """A VM to which the test adds disks."""
    assert libvirt_daemons
    with paused_vm() as found:
        yield found


@pytest.fixture
def history(vm: PausedVm) -> History:
    """The empty history of `vm`."""
    return History(vm)


def reasons(capture: Capture) -> dict[str, str]:
    """Why each disk is read in full, by target."""
    return {disk.target: disk.full_reason for disk in capture.result.disks}


def read(capture: Capture, target: str, offset: int, length: int) -> bytes:
    found = bytearray()
    with capture.open_reader(target) as reader:
        reader.read([(offset, length)], BufferPool(1 << 20), lambda _o, data: found.extend(data))
    return bytes(found)
