"""What a change tracker forgets of a disk that is cut and grows again between two points (pitfall 12).

QEMU drops what it knew of the part that is cut off, and sets no bit when the disk grows again. That part reads as zero
then, but for what lies between the cut and the end of its qcow2 cluster: there QEMU writes zeroes where there is a
backing file, and leaves what was written before the cut where there is none. Nothing records that any of it happened,
and all of it is called clean, so each incremental looks at the disk's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.backup import clean_check, planning
from vmcellar.backup.clean_check import Sample
from vmcellar.progress import CancelToken
from vmcellar.repository.points import RestorePoint
from vmcellar.sources.base import GRANULARITY, Capture, Extent, SourceDisk
from vmcellar.sources.nbd import ExportReader

if TYPE_CHECKING:
    from vmcellar.engine import Engine

WINDOW = 2 << 20
"""The largest cluster of qcow2: what a cut leaves behind as data lies in one window."""


SECTOR = 512
"""No qcow2 image is cut within one."""


@dataclass(slots=True)
class CutOff:
    """Clean ranges at a disk's end: `changed` are not what the parent has, of `unsure` it cannot be told."""

    changed: list[Extent] = field(default_factory=list)
    unsure: list[Extent] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """How much changed unnoticed."""
        return sum(extent.length for extent in self.changed)

    def beside(self, dirty: Sequence[Extent]) -> list[Extent]:
        """What is to be recorded, in order."""
        return sorted([*dirty, *self.changed, *self.unsure], key=lambda extent: extent.offset)


def cut_off(
    engine: Engine,
    capture: Capture,
    disk: SourceDisk,
    parent: RestorePoint,
    dirty: Sequence[Extent],
    allocated: Sequence[Extent],
    cancel: CancelToken,
) -> CutOff:
    """Compare what is called clean with the parent, from the disk's end back to data that is still what it was.

    As a rule that is one window or two, so a few MiB are read while the VM is held. Data where the parent has none is
    looked at in the last window that has any, and further on as long as something changed: a preallocated disk may have
    terabytes of it. Raises what reading the map and the disk raises.
    """
    end = _End(engine, parent, disk, dirty, allocated)
    found = CutOff()
    doubt = True
    with clean_check.reader_of(capture, disk) as reader:
        for window in map(end.window, end.windows()):
            if not (window.known or (doubt and window.samples)):
                continue
            wrong = clean_check.differing(engine, reader, window.samples, cancel)
            changed = [*window.gone, *(Extent(s[0], s[1]) for s in window.samples if s[0] in wrong)]
            found.changed += changed
            ends = window.unsure
            if 0 < disk.cluster <= GRANULARITY:
                ends = _zero_ends(engine, reader, window.unsure, cancel)
            found.unsure += ends
            kept = any(chunk is not None and offset not in wrong for offset, _, chunk in window.samples)
            if kept or any(extent not in ends for extent in window.unsure):
                break  # a cut takes all that lies behind it, so there was none before this
            doubt = bool(changed)
    return found


def _zero_ends(engine: Engine, reader: ExportReader, extents: Sequence[Extent], cancel: CancelToken) -> list[Extent]:
    """The zeroes at the end of each, which may be those of a cut: no cluster is larger than what one bit is for, so
    nothing that was written behind the cut can have come back.
    """
    ends: list[Extent] = []

    def look(offset: int, data: memoryview) -> None:
        used = min(len(data), -(-len(bytes(data).rstrip(b"\0")) // SECTOR) * SECTOR)
        if used < len(data):
            ends.append(Extent(offset + used, len(data) - used))

    reader.read([(extent.offset, extent.length) for extent in extents], engine.read_buffers, look, cancel)
    return ends


@dataclass(frozen=True, slots=True)
class _Window:
    """What is clean in a window. `known`: the parent has data there; `gone`: of that, what is a hole now."""

    known: bool
    gone: list[Extent] = field(default_factory=list)
    unsure: list[Extent] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


class _End:
    """What a disk and its parent have, window by window."""

    def __init__(
        self,
        engine: Engine,
        parent: RestorePoint,
        disk: SourceDisk,
        dirty: Sequence[Extent],
        allocated: Sequence[Extent],
    ) -> None:
        self._repository = engine.repository
        self._map = engine.repository.map(parent.disk(disk.target))
        self._size = disk.size
        self._dirty = dirty
        self._data = [extent for extent in allocated if not extent.zero]
        self._holes = [extent for extent in allocated if extent.zero]

    def windows(self) -> Iterator[int]:
        """The numbers of those that have data, now or in the parent, the last one first."""
        now = (
            number
            for extent in reversed(self._data)
            for number in range((extent.offset + extent.length - 1) // WINDOW, extent.offset // WINDOW - 1, -1)
        )
        then = (
            int(number)
            for rows in self._map.backwards()
            for number in np.unique(rows["offset"] // np.uint64(WINDOW))[::-1]
        )
        return (number for number, _ in groupby(merge(now, then, reverse=True)))

    def window(self, number: int) -> _Window:
        """What is to be compared in one of them."""
        start, end = number * WINDOW, min((number + 1) * WINDOW, self._size)
        rows = [row for part in self._map.rows(start, end) for row in part]
        clean = [(row, piece) for row in rows for piece in planning.without(*_ends(row), self._dirty)]
        found = _Window(known=bool(clean))
        for row, piece in clean:
            self._sort(row, piece, found)
        taken = [Extent(int(row["offset"]), int(row["length"])) for row in rows]
        for empty in planning.without(start, end, taken):
            for kept in planning.without(*empty, self._dirty):
                for data in planning.without(*kept, self._holes):
                    found.samples.extend((a, b - a, None) for a, b in planning.cut(*data))
        return found

    def _sort(self, row: np.void, piece: tuple[int, int], found: _Window) -> None:
        start, end = piece
        extent = Extent(start, end - start)
        if planning.without(start, end, self._data) == [piece]:
            found.gone.append(extent)
        elif piece == _ends(row) and clean_check.is_whole(self._repository, row):
            found.samples.append((start, end - start, row["chunk"].tobytes()))
        else:
            found.unsure.append(extent)


def _ends(row: np.void) -> tuple[int, int]:
    return int(row["offset"]), int(row["offset"]) + int(row["length"])
