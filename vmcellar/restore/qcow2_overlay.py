"""A new qcow2 image over a backing disk of which the holes are known: they are zero in the image itself.

QEMU pulls a backing over from end to end, holes included: it reads each from the server, looks whether it is zero, and
notes that. A terabyte of holes takes it longer than the data does. What the image itself says to be zero is passed by.
That costs 8 bytes per cluster of a hole, so clusters grow with the disk. Source: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vmcellar.restore.qcow2 import CLUSTERS, COPIED, HEADER_BYTES, Refcounts, UsedClusters, big_endian, header
from vmcellar.restore.targets import RawTarget

METADATA_MOST = 128 << 20
"""Bytes of L2 tables of an image all of which is a hole: clusters are 64 KiB up to 1 TiB of disk, 1 MiB at 16 TiB."""

_SMALLEST = 1 << 16
_ZERO = np.uint64(1)
"""The flag of an L2 entry whose cluster reads as zero, whatever the backing holds."""
_FORMAT_EXTENSION = struct.pack(">II8s", 0xE2792ACA, 3, b"raw") + bytes(8)
"""The backing's format, then the end of the extensions."""


def overlay_cluster(size: int) -> int:
    """Bytes of a cluster of the overlay of a disk of `size` bytes."""
    return next((each for each in CLUSTERS if each >= _SMALLEST and size // each * 8 <= METADATA_MOST), CLUSTERS[-1])


def write_overlay(path: Path, backing: str, used: UsedClusters) -> None:
    """Make the image file `path`, durably: `backing` (as QEMU names it, raw) where `used` says, zero elsewhere.

    A file of that name is replaced. PermanentError when there is no room, TransientError on other failures; then no
    file is left.
    """
    layout = _OverlayLayout(used, backing.encode())
    target = RawTarget(path, layout.file_size)
    try:
        for place, data in layout.metadata():
            target.write(place, memoryview(data))
        target.finish()
    finally:
        target.abort()


class _OverlayLayout:
    """Header, reference counts, L1 table, then an L2 table for each stretch of the disk that has a hole. No data."""

    def __init__(self, used: UsedClusters, backing: bytes) -> None:
        self._used = used
        self._cluster = used.cluster
        self._backing = backing
        inside = -(-used.size // used.cluster)
        full = np.minimum(used.entries, inside - np.arange(used.tables) * used.entries)
        self._holed = used.counts() < full
        self._l1_clusters = -(-used.tables * 8 // used.cluster)
        self._refcounts = Refcounts(used.cluster, 1 + self._l1_clusters + int(self._holed.sum()))
        self._l1 = 1 + self._refcounts.clusters
        self._l2 = self._l1 + self._l1_clusters

    @property
    def file_size(self) -> int:
        return self._refcounts.total * self._cluster

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """(offset in the file, bytes)."""
        yield 0, self._first_cluster()
        yield from self._refcounts.metadata(first=1)
        l1 = np.zeros(self._used.tables, np.uint64)
        tables = np.arange(int(self._holed.sum()), dtype=np.uint64) + np.uint64(self._l2)
        l1[self._holed] = (tables * np.uint64(self._cluster)) | COPIED
        yield self._l1 * self._cluster, big_endian(l1)
        for place, number in enumerate(np.flatnonzero(self._holed)):
            yield (self._l2 + place) * self._cluster, self._l2_table(int(number))

    def _l2_table(self, number: int) -> bytes:
        table = np.where(self._used.table(number), np.uint64(0), _ZERO)
        inside = -(-self._used.size // self._cluster) - number * self._used.entries
        table[max(inside, 0) :] = 0
        return big_endian(table)

    def _first_cluster(self) -> bytes:
        """The header, its extensions, the name of the backing."""
        place = HEADER_BYTES + len(_FORMAT_EXTENSION)
        head = header(self._used, self._l1 * self._cluster, self._refcounts, (place, len(self._backing)))
        return (head + _FORMAT_EXTENSION + self._backing).ljust(self._cluster, b"\0")
