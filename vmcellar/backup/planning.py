"""From extents to work: which bytes of a disk are read, in which segments, in which chunks.

Offsets and lengths are bytes. Pure functions: the same capture always gives the same plan, so a resumed run can
trust it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vmcellar.repository.layout import CHUNK_MAX
from vmcellar.sources.base import Extent

SEGMENTS_MAX = 64
"""A disk has at most this many segments, so that a run's DAG stays readable; larger disks get larger segments."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A bounded piece of what is to be recorded of a disk: extents to read, and extents known to be zero."""

    number: int
    read: tuple[tuple[int, int], ...]
    zero: tuple[tuple[int, int], ...]

    @property
    def read_bytes(self) -> int:
        """Bytes that must be read from the source."""
        return sum(length for _, length in self.read)

    @property
    def zero_bytes(self) -> int:
        """Bytes that are zero without reading."""
        return sum(length for _, length in self.zero)


def full_extents(allocated: Iterable[Extent]) -> list[Extent]:
    """What a full records: the data. Holes need no word, as absent means zero in a new map."""
    return [extent for extent in allocated if not extent.zero]


def incremental_extents(dirty: Iterable[Extent], allocated: Iterable[Extent]) -> list[Extent]:
    """What an incremental records: all that is dirty, zero where it is a hole now.

    A dirty hole is content: leaving it out would bring old data back (pitfall 1).
    """
    result: list[Extent] = []
    holes = iter([(e.offset, e.offset + e.length) for e in allocated if e.zero])
    hole = next(holes, None)
    for extent in dirty:
        position, end = extent.offset, extent.offset + extent.length
        while position < end:
            while hole is not None and hole[1] <= position:
                hole = next(holes, None)
            if hole is None or hole[0] >= end:
                result.append(Extent(position, end - position, False))
                position = end
            elif hole[0] > position:
                result.append(Extent(position, hole[0] - position, False))
                position = hole[0]
            else:
                stop = min(end, hole[1])
                result.append(Extent(position, stop - position, True))
                position = stop
    return result


def without(start: int, end: int, extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """What of [start, end) none of `extents`, sorted, covers, as (first byte, end)."""
    result = []
    index = max(0, bisect_right(extents, start, key=lambda extent: extent.offset) - 1)
    for extent in islice(extents, index, None):
        if extent.offset >= end:
            break
        if extent.offset > start:
            result.append((start, extent.offset))
        start = max(start, extent.offset + extent.length)
    if start < end:
        result.append((start, end))
    return result


def segments(extents: Iterable[Extent], segment_bytes: int) -> list[Segment]:
    """Cut `extents` into segments of about `segment_bytes` to read, larger where there would be over 64.

    Cuts lie on multiples of CHUNK_MAX, so a segment border never splits a chunk.
    """
    extents = list(extents)
    total = sum(extent.length for extent in extents if not extent.zero)
    limit = max(segment_bytes, -(-total // SEGMENTS_MAX)) + CHUNK_MAX
    cutter = _Cutter(limit)
    for extent in extents:
        cutter.add(extent)
    return cutter.finish()


def chunks(segment: Segment) -> Iterator[tuple[int, int]]:
    """The chunks of a segment, in order: runs that cross no multiple of CHUNK_MAX."""
    for offset, length in segment.read:
        yield from ((start, end - start) for start, end in cut(offset, offset + length))


def cut(start: int, end: int) -> Iterator[tuple[int, int]]:
    """[start, end) as pieces, (first byte, end), that cross no multiple of CHUNK_MAX."""
    while start < end:
        stop = min(end, (start // CHUNK_MAX + 1) * CHUNK_MAX)
        yield start, stop
        start = stop


class _Cutter:
    """Fills one segment after the other."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._done: list[Segment] = []
        self._read: list[tuple[int, int]] = []
        self._zero: list[tuple[int, int]] = []
        self._room = limit

    def add(self, extent: Extent) -> None:
        if extent.zero:
            self._zero.append((extent.offset, extent.length))
            return
        position, end = extent.offset, extent.offset + extent.length
        while position < end:
            stop = min(end, position + self._room)
            if stop < end:
                stop = stop // CHUNK_MAX * CHUNK_MAX
            if stop <= position:
                self._close()
                continue
            self._read.append((position, stop - position))
            self._room -= stop - position
            position = stop

    def finish(self) -> list[Segment]:
        if self._read or self._zero:
            self._close()
        return self._done

    def _close(self) -> None:
        self._done.append(Segment(len(self._done), tuple(self._read), tuple(self._zero)))
        self._read, self._zero, self._room = [], [], self._limit
