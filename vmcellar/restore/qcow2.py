"""The layout of a new qcow2 image whose used clusters are known beforehand. Source: QEMU's docs/interop/qcow2.txt.

All metadata comes first, then the data clusters in the order of the disk, without gaps: the layout that reads
fastest, and one in which any cluster's place is known before anything is written. So data can be written from any
thread, in any order, straight to the file. Version 3, clusters of 4 KiB to 2 MiB, 16-bit reference counts, no features.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcellar.repository.nodes import Rows

CLUSTER = 1 << 16
"""Bytes of a cluster unless told otherwise, QEMU's own default: an L2 table then maps 512 MiB of disk."""

CLUSTERS = tuple(1 << bits for bits in range(12, 22))
"""The sizes that may be asked for."""

COPIED = np.uint64(1 << 63)
"""Set in L1 and L2 entries whose cluster has exactly one reference, as all of ours have."""

HEADER = ">4sIQIIQIIQQIIQQQQII"
HEADER_BYTES = struct.calcsize(HEADER)


class UsedClusters:
    """Which clusters of a disk hold data: one bit each, 2 MiB of memory per TiB of disk with clusters of 64 KiB."""

    def __init__(self, size: int, cluster: int = CLUSTER) -> None:
        self.size = size
        self.cluster = cluster
        self.entries = cluster // 8
        """Entries of one L2 table."""
        self.tables = max(1, -(-size // (cluster * self.entries)))
        self._bits = np.zeros((self.tables, self.entries // 8), np.uint8)

    def add_all(self) -> None:
        """Mark the whole disk: the image then has all of its metadata and a place for each cluster."""
        clusters = -(-self.size // self.cluster)
        bits = self._bits.reshape(-1)
        bits[: clusters >> 3] = 0xFF
        if clusters & 7:
            bits[clusters >> 3] = (1 << (clusters & 7)) - 1

    def add(self, rows: Rows) -> None:
        """Mark everything that these extents, sorted and without overlaps, touch."""
        if len(rows) == 0:
            return
        size = np.uint64(self.cluster)
        first = (rows["offset"] // size).astype(np.int64)
        last = ((rows["offset"] + rows["length"] - np.uint64(1)) // size).astype(np.int64)
        lengths = last - first + 1
        starts = np.repeat(first - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        clusters = starts + np.arange(len(starts))
        np.bitwise_or.at(self._bits.reshape(-1), clusters >> 3, (1 << (clusters & 7)).astype(np.uint8))

    def table(self, number: int) -> NDArray[np.bool_]:
        """Which of the clusters that L2 table `number` maps are used."""
        return np.unpackbits(self._bits[number], bitorder="little").astype(np.bool_)

    def runs(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of neighbouring used clusters, one L2 table after the other; none goes beyond the disk."""
        for number in np.flatnonzero(self._bits.any(axis=1)).tolist():
            edges = np.flatnonzero(np.diff(self.table(number).astype(np.int8), prepend=0, append=0))
            start = number * self.entries
            for first, end in edges.reshape(-1, 2).tolist():
                offset = (start + first) * self.cluster
                yield offset, min((start + end) * self.cluster, self.size) - offset

    def counts(self) -> NDArray[np.int64]:
        """Used clusters per L2 table."""
        return np.array([int(self.table(number).sum()) for number in range(self.tables)], np.int64)


class Refcounts:
    """The reference counts of an image in which each of `others` clusters, and of their own, has one reference."""

    def __init__(self, cluster: int, others: int) -> None:
        self.table_clusters = self._blocks = 0
        self._cluster = cluster
        while self._blocks * (cluster // 2) < others + self.clusters:
            self._blocks += 1
            self.table_clusters = -(-self._blocks * 8 // cluster)
        self.total = others + self.clusters
        """All clusters of the image."""

    @property
    def clusters(self) -> int:
        """Clusters that the counts themselves take: their table, then their blocks."""
        return self.table_clusters + self._blocks

    def metadata(self, first: int) -> Iterator[tuple[int, bytes]]:
        """(offset in the file, bytes) of table and blocks, which begin at cluster `first`."""
        start = first + self.table_clusters
        blocks = np.arange(self._blocks, dtype=np.uint64) + np.uint64(start)
        yield first * self._cluster, big_endian(blocks * np.uint64(self._cluster))
        for block in range(self._blocks):
            count = min(self._cluster // 2, self.total - block * (self._cluster // 2))
            yield (start + block) * self._cluster, np.ones(count, ">u2").tobytes()


class Qcow2Layout:
    """Where everything lies in the image file. Immutable; any thread."""

    def __init__(self, used: UsedClusters) -> None:
        self._used = used
        self._cluster = used.cluster
        counts = used.counts()
        self._mapped = counts > 0
        l2_tables = int(self._mapped.sum())
        self._l1_clusters = -(-used.tables * 8 // self._cluster)
        self._refcounts = Refcounts(used.cluster, 1 + self._l1_clusters + l2_tables + int(counts.sum()))
        self.clusters = self._refcounts.total
        self._l1 = 1 + self._refcounts.clusters
        self._l2 = self._l1 + self._l1_clusters
        self._data = self._l2 + l2_tables + np.concatenate([[0], np.cumsum(counts)[:-1]])

    @property
    def file_size(self) -> int:
        """The image file's length in bytes."""
        return self.clusters * self._cluster

    def place(self, offset: int) -> int:
        """Where byte `offset` of the disk lies in the file; what follows it there are the used clusters that follow it.

        KeyError when its cluster is not among the used ones.
        """
        number, inside = divmod(offset, self._cluster * self._used.entries)
        table = self._used.table(number)
        cluster = inside // self._cluster
        if not table[cluster]:
            raise KeyError(offset)
        rank = int(np.count_nonzero(table[:cluster]))
        return (int(self._data[number]) + rank) * self._cluster + inside % self._cluster

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """(offset in the file, bytes) of all that is not data, some at a time; between them lies zero."""
        yield 0, header(self._used, self._l1 * self._cluster, self._refcounts)
        yield from self._refcounts.metadata(first=1)
        l1 = np.zeros(self._used.tables, np.uint64)
        l2 = np.arange(int(self._mapped.sum()), dtype=np.uint64) + np.uint64(self._l2)
        l1[self._mapped] = (l2 * np.uint64(self._cluster)) | COPIED
        yield self._l1 * self._cluster, big_endian(l1)
        for place, number in enumerate(np.flatnonzero(self._mapped)):
            yield (self._l2 + place) * self._cluster, self._l2_table(int(number))

    def _l2_table(self, number: int) -> bytes:
        used = self._used.table(number)
        table = np.zeros(self._used.entries, np.uint64)
        data = np.arange(int(used.sum()), dtype=np.uint64) + np.uint64(self._data[number])
        table[used] = (data * np.uint64(self._cluster)) | COPIED
        return big_endian(table)


def header(used: UsedClusters, l1: int, refcounts: Refcounts, backing: tuple[int, int] = (0, 0)) -> bytes:
    """The header of an image whose reference counts begin at its second cluster; `l1` is the L1 table's offset.

    `backing` is (offset, length) of its name. Encryption, snapshots and all feature bits are zero; extensions follow.
    """
    return struct.pack(
        HEADER,
        *(b"QFI\xfb", 3, *backing, used.cluster.bit_length() - 1, used.size, 0),
        *(used.tables, l1, used.cluster, refcounts.table_clusters, 0, 0),
        *(0, 0, 0, 4, HEADER_BYTES),
    )


def big_endian(values: NDArray[np.uint64]) -> bytes:
    """As numbers lie in the image."""
    return values.astype(">u8").tobytes()
