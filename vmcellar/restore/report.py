"""What a restore was asked for and what came of it; plain values, JSON through `dataclasses.asdict`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmcellar.restore.qcow2 import CLUSTER
from vmcellar.restore.targets import ImageFormat, ImageOptions, Preallocation


@dataclass(frozen=True, slots=True)
class RestoreTarget:
    """Where to and how: `disks` empty means all; `best_effort` restores what can be read and lists the rest."""

    directory: Path
    format: ImageFormat = "qcow2"
    disks: tuple[str, ...] = ()
    best_effort: bool = False
    preallocation: Preallocation = "off"
    cluster: int = CLUSTER

    def image(self) -> ImageOptions:
        """How each image is made; UsageError for what does not go together."""
        return ImageOptions(self.format, self.preallocation, self.cluster)


@dataclass(frozen=True, slots=True)
class LostRange:
    """Bytes of a disk that could not be restored and read as zero in the image; `reason` names pack or map node."""

    target: str
    offset: int
    length: int
    reason: str


@dataclass(frozen=True, slots=True)
class RestoredDisk:
    """One restored image: `size` is the disk's, `written` the bytes that were not zero."""

    target: str
    path: Path
    size: int
    written: int


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A finished restore. `artifacts` are the files beside the disks by name, `read` bytes read from the tier."""

    point: str
    vm: str
    directory: Path
    format: ImageFormat
    disks: tuple[RestoredDisk, ...]
    artifacts: Mapping[str, Path]
    lost: tuple[LostRange, ...]
    read: int
    seconds: float


def merge_lost(ranges: list[LostRange]) -> tuple[LostRange, ...]:
    """The same ranges sorted by disk and offset, neighbours with one reason made one."""
    merged: list[LostRange] = []
    for item in sorted(ranges, key=lambda r: (r.target, r.offset)):
        last = merged[-1] if merged else None
        if (
            last
            and (last.target, last.reason) == (item.target, item.reason)
            and last.offset + last.length == item.offset
        ):
            merged[-1] = LostRange(last.target, last.offset, last.length + item.length, last.reason)
        else:
            merged.append(item)
    return tuple(merged)
