"""Disk maps: which chunk holds which extent of a disk, as a persistent tree (docs/repository-format.md, section 6).

Nodes are named by their content and never change, so two maps share what they have in common: writing one after a
change costs the nodes above the change, and comparing two costs the nodes that differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmcellar.repository import nodes
from vmcellar.repository.layout import ABSENT, LEAF_BYTES, level_for, span_of
from vmcellar.repository.nodes import Children, Rows

BATCH = 256
"""Nodes that are fetched at once: bounds memory on disks of any size."""


class NodeStore(Protocol):
    """Where nodes come from; `Repository` is one."""

    def fetch_nodes(self, ids: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """The bytes of all nodes named, checked; IntegrityError that names one that is missing or damaged."""
        ...

    def node_id(self, data: bytes) -> bytes:
        """The id of a node with these bytes."""
        ...


@dataclass(frozen=True, slots=True)
class DiskMap:
    """The map of one disk of `size` bytes; `root` ABSENT is a disk of zeroes. Immutable; any thread."""

    store: NodeStore
    size: int
    root: bytes = ABSENT

    @property
    def level(self) -> int:
        """The level of the root node; a function of the size."""
        return level_for(self.size)

    def rows(self, start: int = 0, end: int | None = None) -> Iterator[Rows]:
        """The extents of [start, end) in order, some at a time, cut at start and end; what is missing is zero."""
        end = self.size if end is None else min(end, self.size)
        if start >= end:
            return
        for base, leaf in self._leaves(self.level, 0, self.root, start, end):
            found = nodes.decode_leaf(leaf, base)
            if base < start or base + LEAF_BYTES > end:
                found = nodes.clip(found, start, end)
            if len(found):
                yield found

    def backwards(self) -> Iterator[Rows]:
        """All extents, those of one leaf at a time, the last leaf first; nodes are fetched one by one as it goes."""
        pending = [(self.level, 0, self.root)] if self.root != ABSENT else []
        while pending:
            level, base, node = pending.pop()
            data = self.store.fetch_nodes([node])[node]
            if level == 0:
                yield nodes.decode_leaf(data, base)
                continue
            below = _inside(level, base, nodes.decode_inner(data, level), 0, self.size)
            pending += [(level - 1, place, child) for place, child in below]

    def _leaves(self, level: int, base: int, node: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        if node == ABSENT:
            return
        data = self.store.fetch_nodes([node])[node]
        if level == 0:
            yield base, data
            return
        yield from self._below(level, base, nodes.decode_inner(data, level), start, end)

    def _below(self, level: int, base: int, children: Children, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        wanted = _inside(level, base, children, start, end)
        found = self.store.fetch_nodes([child for _, child in wanted])
        for place, child in wanted:
            if level == 1:
                yield place, found[child]
            else:
                inner = nodes.decode_inner(found[child], level - 1)
                yield from self._below(level - 1, place, inner, start, end)

    def node_ids(self) -> Iterator[list[bytes]]:
        """The ids of all nodes, some at a time, for checks and for gc; a shared subtree may come more than once."""
        pending = [(self.level, self.root)] if self.root != ABSENT else []
        while pending:
            batch, pending = pending[-BATCH:], pending[:-BATCH]
            yield [node for _, node in batch]
            inner = [(level, node) for level, node in batch if level]
            found = self.store.fetch_nodes([node for _, node in inner])
            for level, node in inner:
                children = nodes.decode_inner(found[node], level)
                pending += [(level - 1, child) for child in _present(children)]

    def replace(self, changes: Rows, size: int | None = None) -> tuple[bytes, dict[bytes, bytes]]:
        """The root after `changes` and perhaps a new size, and the nodes that are new.

        `changes` are rows sorted by offset, without overlaps, inside the new size; a zero chunk id means zero now.
        Everything beyond a smaller size is dropped. Costs time and memory in proportion to the changes.
        """
        size = self.size if size is None else size
        _check_changes(changes, size)
        level = level_for(size)
        edit = Edit(self.store)
        root = edit.relevel(self.root, self.level, level)
        lost = nodes.zero_rows(size, max(0, min(self.size, span_of(level)) - size))
        every = np.concatenate([changes, lost])
        root = edit.apply(level, 0, root, nodes.cut(every, _leaf_borders(every)))
        return root, edit.reachable(root, level)

    def differences(self, other: DiskMap) -> Iterator[tuple[int, int]]:
        """(offset, length) of every range whose extents differ between the two maps, in order, merged where they touch.

        Equal nodes are never fetched. Ranges that only name other chunks of equal content count as different.
        """
        level = max(self.level, other.level)
        mine, theirs = Edit(self.store), Edit(other.store)
        roots = mine.relevel(self.root, self.level, level), theirs.relevel(other.root, other.level, level)
        yield from _merged(_compare(mine, theirs, level, 0, roots))


def fetch_ahead(store: NodeStore, maps: Iterable[DiskMap], start: int, end: int) -> None:
    """Have the store fetch the nodes of [start, end) of all these maps, so that it remembers them: one call for each
    level, where walking one map after the other takes a call for each inner node. Raises what the store raises.
    """
    pending = [(found.level, 0, found.root) for found in maps if found.root != ABSENT]
    while pending:
        found = store.fetch_nodes([node for _, _, node in pending])
        pending = [
            (level - 1, place, child)
            for level, base, node in pending
            if level
            for place, child in _inside(level, base, nodes.decode_inner(found[node], level), start, end)
        ]


def _inside(level: int, base: int, children: Children, start: int, end: int) -> list[tuple[int, bytes]]:
    """(first byte, id) of the children of an inner node that touch [start, end)."""
    span = span_of(level - 1)
    return [
        (base + int(i) * span, children[i].tobytes())
        for i in np.flatnonzero(children.any(axis=1))
        if base + int(i) * span < end and base + (int(i) + 1) * span > start
    ]


def _compare(mine: Edit, theirs: Edit, level: int, base: int, pair: tuple[bytes, bytes]) -> Iterator[tuple[int, int]]:
    if pair[0] == pair[1]:
        return
    if level == 0:
        yield from _leaf_differences(mine.leaf(pair[0], base), theirs.leaf(pair[1], base))
        return
    left, right = mine.inner(pair[0], level), theirs.inner(pair[1], level)
    differ = np.flatnonzero((left != right).any(axis=1))
    mine.prefetch(left[differ])
    theirs.prefetch(right[differ])
    for i in differ:
        place = base + int(i) * span_of(level - 1)
        yield from _compare(mine, theirs, level - 1, place, (left[i].tobytes(), right[i].tobytes()))


def _leaf_differences(left: Rows, right: Rows) -> Iterator[tuple[int, int]]:
    """Ranges whose extents differ: both sides are cut at the other's borders, so equal extents are equal rows."""
    left, right = nodes.cut(left, _borders(right)), nodes.cut(right, _borders(left))
    only = np.concatenate([left[~_found_in(left, right)], right[~_found_in(right, left)]])
    for row in only[np.argsort(only["offset"], kind="stable")]:
        yield int(row["offset"]), int(row["length"])


def _borders(rows: Rows) -> NDArray[np.uint64]:
    return nodes.distinct(np.concatenate([rows["offset"], nodes.ends(rows)]))


def _found_in(rows: Rows, others: Rows) -> NDArray[np.bool_]:
    if len(others) == 0:
        return np.zeros(len(rows), np.bool_)
    place = np.minimum(np.searchsorted(others["offset"], rows["offset"]), len(others) - 1)
    result: NDArray[np.bool_] = rows == others[place]
    return result


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = end = 0
    for offset, length in ranges:
        if offset > end or start == end:
            if end > start:
                yield start, end - start
            start, end = offset, offset + length
        else:
            end = max(end, offset + length)
    if end > start:
        yield start, end - start


def _present(children: Children) -> list[bytes]:
    return [children[i].tobytes() for i in np.flatnonzero(children.any(axis=1))]


def _leaf_borders(rows: Rows) -> NDArray[np.uint64]:
    """The leaf borders that lie inside a row."""
    first = rows["offset"] // np.uint64(LEAF_BYTES) + np.uint64(1)
    last = (nodes.ends(rows) - np.uint64(1)) // np.uint64(LEAF_BYTES)
    crossing = np.flatnonzero((last >= first) & (rows["length"] > 0))
    inside = [np.arange(first[i], last[i] + np.uint64(1), dtype=np.uint64) for i in crossing]
    return nodes.distinct(np.concatenate(inside)) * np.uint64(LEAF_BYTES) if inside else np.zeros(0, np.uint64)


def _check_changes(changes: Rows, size: int) -> None:
    stops = nodes.ends(changes)
    if (changes["offset"][1:] < stops[:-1]).any() or (len(stops) and int(stops[-1]) > size):
        raise ValueError("changes must be sorted, must not overlap and must lie inside the disk")


class Edit:
    """New nodes on top of a store: the work of one `replace` or `differences`, in one thread."""

    def __init__(self, store: NodeStore) -> None:
        self._store = store
        self._new: dict[bytes, bytes] = {}
        self._fetched: dict[bytes, bytes] = {}

    def prefetch(self, children: Children) -> None:
        """Fetch what of these ids is present, in one go."""
        wanted = [node for node in _present(children) if node not in self._new]
        self._fetched = {**self._fetched, **self._store.fetch_nodes(wanted)} if wanted else self._fetched

    def _data(self, node: bytes) -> bytes:
        if node in self._new:
            return self._new[node]
        data = self._fetched.pop(node, None)
        return self._store.fetch_nodes([node])[node] if data is None else data

    def leaf(self, node: bytes, base: int) -> Rows:
        """The rows of a leaf, none if it is absent."""
        return nodes.no_rows() if node == ABSENT else nodes.decode_leaf(self._data(node), base)

    def inner(self, node: bytes, level: int) -> Children:
        """The children of an inner node, none if it is absent."""
        return nodes.no_children() if node == ABSENT else nodes.decode_inner(self._data(node), level)

    def _keep(self, data: bytes) -> bytes:
        node = self._store.node_id(data)
        self._new[node] = data
        return node

    def _keep_inner(self, children: Children, level: int) -> bytes:
        return self._keep(nodes.encode_inner(children, level)) if children.any() else ABSENT

    def relevel(self, root: bytes, level: int, wanted: int) -> bytes:
        """The root of the same tree at another level: grown trees get parents, shrunk ones lose their right part."""
        for below in range(level, wanted):
            children = nodes.no_children()
            children[0] = np.frombuffer(root, np.uint8)
            root = self._keep_inner(children, below + 1)
        for above in range(level, wanted, -1):
            root = self.inner(root, above)[0].tobytes()
        return root

    def apply(self, level: int, base: int, node: bytes, changes: Rows) -> bytes:
        """The node after `changes`, which lie inside it and cross no leaf border."""
        if len(changes) == 0:
            return node
        if int(changes["length"].sum(dtype=np.uint64)) == span_of(level):
            node = ABSENT  # all of it is replaced: what was there need not be read
        if level == 0:
            rows = nodes.overlay(self.leaf(node, base), changes)
            return self._keep(nodes.encode_leaf(rows, base)) if len(rows) else ABSENT
        span = span_of(level - 1)
        children = self.inner(node, level)
        index = ((changes["offset"] - np.uint64(base)) // np.uint64(span)).astype(np.int64)
        touched, starts = np.unique(index, return_index=True)
        self.prefetch(children[touched])
        for i, part in zip(touched, np.split(changes, starts[1:]), strict=True):
            child = self.apply(level - 1, base + int(i) * span, children[i].tobytes(), part)
            children[i] = np.frombuffer(child, np.uint8)
        return self._keep_inner(children, level)

    def reachable(self, root: bytes, level: int) -> dict[bytes, bytes]:
        """The new nodes that the tree under `root` uses."""
        used: dict[bytes, bytes] = {}
        pending = [(root, level)]
        while pending:
            node, level = pending.pop()
            if node not in self._new or node in used:
                continue
            used[node] = self._new[node]
            if level:
                pending += [(child, level - 1) for child in _present(self.inner(node, level))]
        return used
