"""What every source of disk bytes offers: values and Protocols, no code that touches a hypervisor.

Offsets, lengths and sizes are bytes; times are seconds. All dataclasses but those with `bytes` fields are plain JSON
through pydantic. A `Capture` is one held instant of one VM: whoever holds it must call `end()`, also after errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from vmcellar.errors import PermanentError

if TYPE_CHECKING:
    from vmcellar.sources.nbd import ExportReader

ClearAction = Literal["job-aborted", "checkpoint-removed", "scratch-removed", "stopped", "thawed"]
Consistency = Literal["quiesced", "crash"]


class UnknownVmError(PermanentError):
    """The hypervisor knows no VM of that name."""


GRANULARITY = 64 << 10
"""What a dirty bitmap's bit covers at most; a grown disk's old last bit may reach into the grown part."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a disk's bytes; `zero` says that it reads as zero without reading it."""

    offset: int
    length: int
    zero: bool = False


@dataclass(frozen=True, slots=True)
class SourceDisk:
    """One disk that a capture holds.

    `identity` changes when the image behind `target` becomes another one. `tracked` says whether a dirty bitmap can
    follow it; if not, `reason` says why and it is read in full each time. `full_reason` is empty when this capture
    knows what changed since the parent, else it says why everything is read. `image` and `serial` are for people.
    `cluster` is the bytes of a cluster of the image, 0 where it is not known.
    """

    target: str
    size: int
    identity: str
    format: str
    tracked: bool
    reason: str = ""
    full_reason: str = ""
    image: str = ""
    serial: str = ""
    cluster: int = 0


@dataclass(frozen=True, slots=True)
class UncoveredDisk:
    """A disk that the capture does not hold, and why (pitfall 13).

    `expected` is True when this is no loss: policy excludes it by name, or it is a read-only or removable medium. A
    run with an uncovered disk that is not expected must not be green.
    """

    target: str
    reason: str
    expected: bool


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A checkpoint as a restore point keeps it: enough to define it again after libvirt lost it (pitfall 7)."""

    name: str
    xml: str


@dataclass(frozen=True, slots=True)
class PreviousDisk:
    """What the parent point recorded of a disk."""

    target: str
    identity: str
    size: int


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """One VM, one instant.

    `chain` holds the checkpoints of this VM in this repository that stay on it, oldest first; the parent is the one
    of them that `base` names, else the last one. Empty means that everything is read. Only checkpoints of
    committed, verified points belong in it (pitfall 2). `previous` is what the parent point recorded of its disks.
    `force_full`, if not empty, is the reason to read everything although a parent exists. `start_paused` lets a VM
    that is off be started with its CPUs stopped; `Capture.end` stops it again, unless somebody let it run
    meanwhile.
    """

    vm: str
    run_id: str
    repository_id: str
    chain: tuple[CheckpointRecord, ...] = ()
    previous: tuple[PreviousDisk, ...] = ()
    excluded: frozenset[str] = frozenset()
    force_full: str = ""
    freeze_timeout: float = 10.0
    start_paused: bool = False
    base: str = ""

    @property
    def parent(self) -> str | None:
        """The checkpoint that changes are measured against; None when everything is to be read."""
        if self.force_full or not self.chain:
            return None
        return self.base or self.chain[-1].name


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """What one capture is: plain JSON, and the record from which `Source.reattach` finds it again in a new process.

    `consistency_reason` says why it is not quiesced. `freeze_seconds` is how long the guest's file systems stood
    still. `parent` is the checkpoint that incremental disks are measured against. `began` is seconds since the epoch.
    `socket` and `scratch` (a directory) belong to the running job. `warnings` are for the report.
    """

    vm: str
    vm_uuid: str
    run_id: str
    repository_id: str
    checkpoint: str
    checkpoint_xml: str
    parent: str | None
    consistency: Consistency
    consistency_reason: str
    freeze_seconds: float
    began: float
    socket: str
    scratch: str
    disks: tuple[SourceDisk, ...]
    uncovered: tuple[UncoveredDisk, ...]
    previous: tuple[PreviousDisk, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScratchPressure:
    """How full the file system is where old data of a held VM goes while the guest writes.

    When it fills, the guest's own writes fail (pitfall 11): a backup ends itself well before. `used` is what this
    capture's scratch files occupy, `free` what the file system has left.
    """

    used: int
    free: int

    @property
    def fraction(self) -> float:
        """Used share of what the capture may take at most, 0.0 to 1.0."""
        total = self.used + self.free
        return self.used / total if total else 1.0


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One leftover that reconciliation found and cleared."""

    action: ClearAction
    run_id: str
    detail: str


class Capture(Protocol):
    """One held instant of one VM. Its methods may be called from any thread; each call opens its own NBD connection."""

    @property
    def result(self) -> CaptureResult:
        """The record of this capture (JSON); the caller makes it durable before it reads the first byte."""
        ...

    @property
    def artifacts(self) -> Mapping[str, bytes]:
        """What a restore needs beside the disks, by name; see `LibvirtSource.begin`. Empty after `reattach`."""
        ...

    def uri(self, target: str) -> str:
        """The NBD URI of a held disk, for `vmcellar.sources.nbd.ExportReader`."""
        ...

    def open_reader(self, target: str) -> ExportReader:
        """A new connection to a held disk; one per thread, closed by the caller (it is a context manager)."""
        ...

    def dirty(self, target: str) -> list[Extent] | None:
        """What changed since the parent, sorted, with a grown part (pitfall 12); None = unknown, read everything."""
        ...

    def allocated(self, target: str) -> list[Extent]:
        """The whole disk as sorted extents without gaps, `zero` where it reads as zero."""
        ...

    def scratch_pressure(self) -> ScratchPressure:
        """How near the guest is to write errors because of this capture; cheap, to be asked during export."""
        ...

    def alive(self) -> bool:
        """Whether the hypervisor still holds this instant."""
        ...

    def end(self) -> None:
        """Let the VM go and remove everything temporary. Idempotent; the checkpoint stays."""
        ...


class Source(Protocol):
    """Where VMs live. One process at a time works on a VM (`engine.vm_lock`); different VMs may go in parallel."""

    def begin(self, request: CaptureRequest) -> Capture:
        """Hold one instant of all covered disks; TransientError when the VM is busy, PermanentError with what to do."""
        ...

    def reattach(self, result: CaptureResult) -> Capture | None:
        """The capture of an earlier process, if the hypervisor still holds it; None when that instant is gone."""
        ...

    def reconcile(
        self, vm: str, repository_id: str, kept: Collection[str], live_runs: Collection[str]
    ) -> list[Reconciled]:
        """Clear what dead runs of this repository left on `vm`; nothing else is touched.

        Of this repository's checkpoints only `kept` stay. Runs in `live_runs` keep their job, scratch files and
        checkpoint.
        """
        ...

    def left_behind(self, repository_id: str) -> set[str]:
        """The VMs on which runs of this repository hold an instant, or left files of one."""
        ...


ReadSink = Callable[[int, memoryview], bool | None]
"""Called as sink(offset, data); `data` is a slice of a pooled buffer, valid only until the call returns."""
