"""The layout of a new qcow2 image whose used clusters are known beforehand. Source: QEMU's docs/interop/qcow2.txt.

All metadata comes first, then the data clusters in the order of the disk, without gaps: the layout that reads
fastest, and one in which any cluster's place is known before anything is written. So data can be written from any
thread, in any order, straight to the file. Version 3, 64 KiB clusters, 16-bit reference counts, no features.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcellar.repository.nodes import Rows

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
ENTRIES = CLUSTER // 8
"""Entries of one L2 table: it maps 512 MiB of disk."""

REFCOUNTS = CLUSTER // 2
"""Clusters that one refcount block counts."""

COPIED = np.uint64(1 << 63)
"""Set in L1 and L2 entries whose cluster has exactly one reference, as all of ours have."""

HEADER = ">4sIQIIQIIQQIIQQQQII"
HEADER_BYTES = struct.calcsize(HEADER)


class UsedClusters:
    """Which 64 KiB clusters of a disk hold data: one bit each, 2 MiB of memory per TiB of disk."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tables = max(1, -(-size // (CLUSTER * ENTRIES)))
        self._bits = np.zeros((self.tables, ENTRIES // 8), np.uint8)

    def add(self, rows: Rows) -> None:
        """Mark everything that these extents, sorted and without overlaps, touch."""
        if len(rows) == 0:
            return
        first = (rows["offset"] >> np.uint64(CLUSTER_BITS)).astype(np.int64)
        last = ((rows["offset"] + rows["length"] - np.uint64(1)) >> np.uint64(CLUSTER_BITS)).astype(np.int64)
        lengths = last - first + 1
        starts = np.repeat(first - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        clusters = starts + np.arange(len(starts))
        np.bitwise_or.at(self._bits.reshape(-1), clusters >> 3, (1 << (clusters & 7)).astype(np.uint8))

    def table(self, number: int) -> NDArray[np.bool_]:
        """Which of the clusters that L2 table `number` maps are used."""
        return np.unpackbits(self._bits[number], bitorder="little").astype(np.bool_)

    def counts(self) -> NDArray[np.int64]:
        """Used clusters per L2 table."""
        return np.array([int(self.table(number).sum()) for number in range(self.tables)], np.int64)


class Qcow2Layout:
    """Where everything lies in the image file. Immutable; any thread."""

    def __init__(self, used: UsedClusters) -> None:
        self._used = used
        counts = used.counts()
        self._mapped = counts > 0
        l2_tables = int(self._mapped.sum())
        self._l1_clusters = -(-used.tables * 8 // CLUSTER)
        self.clusters = 1 + self._l1_clusters + l2_tables + int(counts.sum())
        self._blocks = self._table_clusters = 0
        while self._blocks * REFCOUNTS < self.clusters + self._blocks + self._table_clusters:
            self._blocks += 1
            self._table_clusters = -(-self._blocks * 8 // CLUSTER)
        self.clusters += self._blocks + self._table_clusters
        self._l1 = 1 + self._table_clusters + self._blocks
        self._l2 = self._l1 + self._l1_clusters
        self._data = self._l2 + l2_tables + np.concatenate([[0], np.cumsum(counts)[:-1]])

    @property
    def file_size(self) -> int:
        """The image file's length in bytes."""
        return self.clusters * CLUSTER

    def place(self, offset: int) -> int:
        """Where byte `offset` of the disk lies in the file; what follows it there are the used clusters that follow it.

        KeyError when its cluster is not among the used ones.
        """
        number, inside = divmod(offset, CLUSTER * ENTRIES)
        table = self._used.table(number)
        cluster = inside >> CLUSTER_BITS
        if not table[cluster]:
            raise KeyError(offset)
        rank = int(np.count_nonzero(table[:cluster]))
        return (int(self._data[number]) + rank) * CLUSTER + inside % CLUSTER

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """(offset in the file, bytes) of all that is not data, some at a time; between them lies zero."""
        yield 0, self._header()
        blocks = np.arange(self._blocks, dtype=np.uint64) + np.uint64(1 + self._table_clusters)
        yield CLUSTER, _big_endian(blocks << np.uint64(CLUSTER_BITS))
        for block in range(self._blocks):
            count = min(REFCOUNTS, self.clusters - block * REFCOUNTS)
            yield (1 + self._table_clusters + block) * CLUSTER, np.ones(count, ">u2").tobytes()
        l1 = np.zeros(self._used.tables, np.uint64)
        l2 = np.arange(int(self._mapped.sum()), dtype=np.uint64) + np.uint64(self._l2)
        l1[self._mapped] = (l2 << np.uint64(CLUSTER_BITS)) | COPIED
        yield self._l1 * CLUSTER, _big_endian(l1)
        for place, number in enumerate(np.flatnonzero(self._mapped)):
            yield (self._l2 + place) * CLUSTER, self._l2_table(int(number))

    def _l2_table(self, number: int) -> bytes:
        used = self._used.table(number)
        table = np.zeros(ENTRIES, np.uint64)
        data = np.arange(int(used.sum()), dtype=np.uint64) + np.uint64(self._data[number])
        table[used] = (data << np.uint64(CLUSTER_BITS)) | COPIED
        return _big_endian(table)

    def _header(self) -> bytes:
        """Backing file, encryption, snapshots and all feature bits are zero; the zeroes after it end the extensions."""
        return struct.pack(
            HEADER,
            *(b"QFI\xfb", 3, 0, 0, CLUSTER_BITS, self._used.size, 0),
            *(self._used.tables, self._l1 * CLUSTER, CLUSTER, self._table_clusters, 0, 0),
            *(0, 0, 0, 4, HEADER_BYTES),
        )


def _big_endian(values: NDArray[np.uint64]) -> bytes:
    return values.astype(">u8").tobytes()
