"""The small values that stages hand to each other: paths, ids and figures, never disk bytes.

All are plain JSON through `to_json`/`from_json`; sizes are bytes, times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from vmcellar.sources.base import ClearAction

T = TypeVar("T")

Mode = Literal["auto", "full", "incremental", "differential"]
Kind = Literal["full", "incremental"]
Chunks = Literal["grid", "content"]


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """What somebody asked for: one VM, one instant.

    `mode` `differential` reads what changed since the newest full point, `auto` and `incremental` since the newest one.
    `key` makes a retry harmless: a second request with the key of a run that lives continues that run (pitfall 19).
    `exclude_paths` are paths of the guest whose files' content is left out (`backup/leaving.py`).
    `start_paused` lets a VM that is off be started with its CPUs stopped, for as long as it is read.
    """

    vm: str
    mode: Mode = "auto"
    job: str = ""
    key: str = ""
    exclude_disks: tuple[str, ...] = ()
    exclude_paths: tuple[str, ...] = ()
    compression: str = "zstd:auto"
    chunks: Chunks = "grid"
    start_paused: bool = False


@dataclass(frozen=True, slots=True)
class SegmentHandle:
    """One segment of one disk: `bytes` are to be read from the source, `zero` are known to be zero without
    reading.
    """

    target: str
    number: int
    bytes: int
    zero: int


@dataclass(frozen=True, slots=True)
class RunHandle:
    """A begun run: everything else about it lies in its run directory."""

    run_id: str
    vm: str
    kind: Kind
    checkpoint: str
    resumed: bool
    segments: tuple[SegmentHandle, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PackHandle:
    """One sealed pack: `path` while staged, `key` on the tier; `toc` names the file with its table of contents."""

    id: str
    key: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Entropy:
    """Of samples: `bits`, each sample's bits per byte times its weight, and the sum of the `weight`s."""

    bits: float = 0.0
    weight: int = 0

    def __add__(self, other: Entropy) -> Entropy:
        return Entropy(self.bits + other.bits, self.weight + other.weight)

    @property
    def mean(self) -> float | None:
        """Bits per byte, 0 to 8; None without a sample."""
        return min(8.0, self.bits / self.weight) if self.weight else None


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What one segment's reading gave; bytes_read = zero_read + known + landed + direct.

    `landed` bytes lie in the landing zone, `direct` ones are in `packs` already. `known` came as `known_chunks`.
    """

    target: str
    segment: int
    bytes_read: int
    zero_read: int
    known: int
    landed: int
    seconds: float
    direct: int = 0
    packs: tuple[PackHandle, ...] = ()
    reused: bool = False
    known_chunks: int = 0
    entropy: Entropy = Entropy()


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """`held` is how long the backup job existed, in seconds."""

    held: float


@dataclass(frozen=True, slots=True)
class CompressResult:
    """`bytes_plain` went in, `bytes_stored` came out, in `packs`."""

    target: str
    segment: int
    packs: tuple[PackHandle, ...]
    bytes_plain: int
    bytes_stored: int
    seconds: float
    reused: bool = False


@dataclass(frozen=True, slots=True)
class PlaceResult:
    """The packs that are durable on the tier `tier`."""

    target: str
    segment: int
    tier: str
    packs: tuple[str, ...]
    bytes: int
    seconds: float
    reused: bool = False


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """`chunks` chunks were read back from the tier, decoded, and found to be what the source gave."""

    target: str
    segment: int
    packs: tuple[str, ...]
    chunks: int
    bytes: int
    seconds: float
    reused: bool = False


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """One disk of a finished run, for reports."""

    target: str
    size: int
    root: str
    full_reason: str
    bytes_read: int
    bytes_zero: int
    bytes_changed: int
    bytes_known: int
    bytes_new: int
    bytes_stored: int


@dataclass(frozen=True, slots=True)
class PointSummary:
    """A committed restore point, with the figures a report shows. `seconds` has one entry per stage.

    `hooks` has a line for each command that was run around the backup; `hook_failures` make the run red.
    """

    id: str
    run_id: str
    vm: str
    kind: Kind
    reason: str
    parent: str | None
    time: str
    consistency: str
    verified: bool
    freeze_seconds: float
    held_seconds: float
    bytes_read: int
    bytes_changed: int
    bytes_stored: int
    disks: tuple[DiskFigures, ...]
    uncovered: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    hooks: tuple[str, ...] = ()
    hook_failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecoverAction:
    """One thing that recovery found, and what it did about it."""

    vm: str
    run_id: str
    action: Literal["resumable", "abandoned"] | ClearAction
    detail: str


_adapters: dict[type, TypeAdapter[Any]] = {}
"""Building an adapter costs milliseconds, so each class has one; a race builds it twice, harmlessly."""


def _adapter(cls: type) -> TypeAdapter[Any]:
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def make_ready(*classes: type) -> None:
    """Have the JSON forms of these classes built before they are needed: 3 ms each."""
    for cls in classes:
        _adapter(cls)


def to_json(value: object) -> bytes:
    """The JSON form of one of these values."""
    return _adapter(type(value)).dump_json(value, indent=1)


def from_json(cls: type[T], data: bytes) -> T:
    """The value back from its JSON form; pydantic's ValidationError when it is not one."""
    result: T = _adapter(cls).validate_json(data)
    return result
