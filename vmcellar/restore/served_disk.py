"""A disk of a point as an NBD client sees it: reads at any offset, and which ranges are holes. Needs no NBD itself."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vmcellar.errors import VmcellarError
from vmcellar.repository import nodes
from vmcellar.repository.layout import LEAF_BYTES
from vmcellar.repository.nodes import Rows
from vmcellar.restore.plan import chunk_ids
from vmcellar.restore.served_chunks import ChunkCache

if TYPE_CHECKING:
    from vmcellar.repository.points import DiskRecord
    from vmcellar.repository.repository import Repository

AHEAD_BYTES = 8 << 20
"""How far beyond a read that goes on where an earlier one ended the next chunks are fetched."""

_PIECE = 4 << 20  # bytes of one request that are put together at once
_LEAVES = 64  # map leaves kept per disk: 64 GiB of it, some 50 MB where all are fragmented
_ENDS = 64  # ends of reads that are remembered, to see that one goes on
_EXTENTS_MOST = 4096  # of one answer; NBD lets the server answer for less than was asked


class Extent(NamedTuple):
    """A range of the disk; a hole reads as zero and takes no space."""

    offset: int
    length: int
    hole: bool


class ServedDisk:
    """One disk of one point, read-only. Any thread. All that is read was checked, from the disk's root down."""

    def __init__(self, repository: Repository, vm: str, disk: DiskRecord, chunks: ChunkCache) -> None:
        """IntegrityError when the disk's record contradicts itself."""
        self.size = disk.size
        self.target = disk.target
        self._vm = vm
        self._map = repository.map(disk)
        self._chunks = chunks
        self._lock = threading.Lock()
        self._leaves: OrderedDict[int, Rows] = OrderedDict()
        self._ends: OrderedDict[int, None] = OrderedDict({0: None})

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the disk's bytes from `offset`; every byte of it is set.

        IntegrityError, PermanentError or TransientError name VM, disk, byte and pack of what cannot be read.
        """
        for start in range(0, len(view), _PIECE):
            self._read_piece(offset + start, view[start : start + _PIECE])
        if self._goes_on(offset, offset + len(view)):
            self._fetch_ahead(offset + len(view))

    def extents(self, offset: int, length: int) -> list[Extent]:
        """What [offset, offset + length) consists of, from `offset` on without a gap; perhaps not up to its end."""
        end = min(offset + length, self.size)
        found: list[Extent] = []
        place = offset
        for start, data_end in self._data_ranges(offset, end):
            if start > place:
                found.append(Extent(place, start - place, True))
            found.append(Extent(start, data_end - start, False))
            place = data_end
            if len(found) >= _EXTENTS_MOST:
                return found
        if place < end:
            found.append(Extent(place, end - place, True))
        return found

    def _data_ranges(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """The (start, end) of data, neighbours joined."""
        rows = self._named_rows(offset, end)
        if not len(rows):
            return
        starts = rows["offset"].astype(np.int64)
        ends = starts + rows["length"].astype(np.int64)
        breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(rows)], strict=True):
            yield int(starts[first]), int(ends[last - 1])

    def _read_piece(self, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        rows = self._named_rows(offset, end)
        ids = chunk_ids(rows)
        try:
            found = self._chunks.read(ids)
        except VmcellarError as error:
            raise self._named(error, offset) from error
        place = offset
        columns = (rows[name].tolist() for name in ("offset", "length", "chunk_offset"))
        for chunk, start, length, inside in zip(ids, *columns, strict=True):
            _zero(view[place - offset : start - offset])
            piece = memoryview(found[chunk])[inside : inside + length]
            view[start - offset : start - offset + length] = piece
            place = start + length
        _zero(view[place - offset :])

    def _named_rows(self, start: int, end: int) -> Rows:
        """The map's extents of [start, end), cut there; errors name VM, disk and byte."""
        found = []
        for base in range(start // LEAF_BYTES * LEAF_BYTES, end, LEAF_BYTES):
            try:
                leaf = self._leaf(base)
            except VmcellarError as error:
                raise self._named(error, max(base, start)) from error
            found.append(_clip(leaf, start, end))
        return np.concatenate(found) if found else nodes.no_rows()

    def _leaf(self, base: int) -> Rows:
        with self._lock:
            if base in self._leaves:
                self._leaves.move_to_end(base)
                return self._leaves[base]
        leaf = self._chunks.call(lambda: self._read_leaf(base))
        with self._lock:
            self._leaves[base] = leaf
            while len(self._leaves) > _LEAVES:
                self._leaves.popitem(last=False)
        return leaf

    def _read_leaf(self, base: int) -> Rows:
        found = list(self._map.rows(base, min(base + LEAF_BYTES, self.size)))
        return np.concatenate(found) if found else nodes.no_rows()

    def _goes_on(self, offset: int, end: int) -> bool:
        """Whether a read begins where an earlier one ended."""
        with self._lock:
            known = offset in self._ends
            self._ends.pop(offset, None)
            self._ends[end] = None
            if len(self._ends) > _ENDS:
                self._ends.popitem(last=False)
        return known

    def _fetch_ahead(self, start: int) -> None:
        """Only within the leaf that is at hand: at its end the next read brings the next one."""
        with self._lock:
            leaf = self._leaves.get(start // LEAF_BYTES * LEAF_BYTES)
        if leaf is not None and start < self.size:
            self._chunks.fetch_ahead(lambda: chunk_ids(_clip(leaf, start, start + AHEAD_BYTES)))

    def _named(self, error: VmcellarError, offset: int) -> VmcellarError:
        return type(error)(f"{self._vm}: disk {self.target} at byte {offset}: {error.message}", hint=error.hint)


def _clip(leaf: Rows, start: int, end: int) -> Rows:
    """The part of a leaf's extents that lies in [start, end); looks only at those, a leaf may have 16384."""
    first, last = np.searchsorted(leaf["offset"], np.array([start, end], np.uint64))
    return nodes.clip(leaf[max(int(first) - 1, 0) : int(last)], start, end)


def _zero(view: memoryview) -> None:
    if len(view):
        view[:] = bytes(len(view))
