"""Disk maps against a plain model: a bytearray whose bytes say which chunk and which byte of it they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcellar.errors import IntegrityError
from vmcellar.repository import nodes
from vmcellar.repository.diskmap import DiskMap
from vmcellar.repository.layout import ABSENT, CHUNK_MAX, FAN_OUT, LEAF_BYTES, ROW, level_for
from vmcellar.repository.nodes import Rows

UNIT = 1 << 20
"""One step of the model: a disk of some hundred of them has several leaves, and levels 0 to 2."""


@dataclass
class Memory:
    """A node store that counts what is fetched."""

    known: dict[bytes, bytes] = field(default_factory=dict)
    fetched: int = 0

    def node_id(self, data: bytes) -> bytes:
        return blake3(data).digest()

    def fetch_nodes(self, ids: Sequence[bytes]) -> Mapping[bytes, bytes]:
        self.fetched += len(ids)
        return {node: self.known[node] for node in ids}


def rows_of(*extents: tuple[int, int, int]) -> Rows:
    """(offset, length, chunk number; 0 = zero)."""
    rows = np.zeros(len(extents), ROW)
    for row, (offset, length, chunk) in zip(rows, extents, strict=True):
        row["offset"], row["length"] = offset, length
        row["chunk"][:4] = np.frombuffer(chunk.to_bytes(4, "little"), np.uint8)
    return rows


def applied(disk: DiskMap, changes: Rows, size: int | None = None) -> DiskMap:
    root, new = disk.replace(changes, size)
    assert isinstance(disk.store, Memory)
    disk.store.known.update(new)
    return DiskMap(disk.store, disk.size if size is None else size, root)


def content(disk: DiskMap) -> list[tuple[int, int, int, int]]:
    """(offset, length, chunk number, offset in chunk), joined where they go on."""
    result: list[tuple[int, int, int, int]] = []
    for rows in disk.rows():
        for row in rows:
            chunk = int.from_bytes(row["chunk"][:4].tobytes(), "little")
            offset, length, inside = int(row["offset"]), int(row["length"]), int(row["chunk_offset"])
            last = result[-1] if result else (0, 0, 0, 0)
            if last[2] == chunk and last[0] + last[1] == offset and last[3] + last[1] == inside:
                result[-1] = (last[0], last[1] + length, chunk, last[3])
            else:
                result.append((offset, length, chunk, inside))
    return result


class Model:
    """The disk as quarter-units: which chunk, and which quarter of it."""

    STEP = UNIT // 4

    def __init__(self, size: int) -> None:
        self.cells: list[tuple[int, int]] = [(0, 0)] * (size // self.STEP)

    def write(self, changes: Sequence[tuple[int, int, int]], size: int) -> None:
        wanted = size // self.STEP
        self.cells = self.cells[:wanted] + [(0, 0)] * (wanted - len(self.cells))
        for start, length, chunk in changes:
            for i in range(length):
                self.cells[start + i] = (chunk, i) if chunk else (0, 0)

    def content(self) -> list[tuple[int, int, int, int]]:
        result: list[tuple[int, int, int, int]] = []
        for place, (chunk, inside) in enumerate(self.cells):
            if not chunk:
                continue
            row = (place * self.STEP, self.STEP, chunk, inside * self.STEP)
            last = result[-1] if result else (0, 0, 0, 0)
            if last[2] == chunk and last[0] + last[1] == row[0] and last[3] + last[1] == row[3]:
                result[-1] = (last[0], last[1] + self.STEP, chunk, last[3])
            else:
                result.append(row)
        return result


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, int, int]]]]:
    """Some rounds of (new size in quarter-units, changes in quarter-units)."""
    rounds = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.sampled_from([1, 7, 128, 129, 300, 128 * 256, 128 * 256 + 5]))
        changes: list[tuple[int, int, int]] = []
        position = 0
        for _ in range(draw(st.integers(0, 6))):
            start = position + draw(st.integers(0, max(0, size - position)))
            zero = draw(st.booleans())
            length = draw(st.integers(1, 400 if zero else 4))
            length = min(length, size - start)
            if length <= 0:
                break
            changes.append((start, length, 0 if zero else draw(st.integers(1, 9))))
            position = start + length
        rounds.append((size, changes))
    return rounds


@settings(derandomize=True, deadline=None, max_examples=150)
@given(steps())
def test_any_writes_zeroes_and_resizes_match_the_model(
    rounds: list[tuple[int, list[tuple[int, int, int]]]],
) -> None:
    disk, model = DiskMap(Memory(), 0), Model(0)
    seen: list[tuple[DiskMap, list[tuple[int, int, int, int]]]] = []
    for size, changes in rounds:
        scaled = [(start * Model.STEP, length * Model.STEP, chunk) for start, length, chunk in changes]
        disk = applied(disk, rows_of(*scaled), size * Model.STEP)
        model.write(changes, size * Model.STEP)
        assert content(disk) == model.content()
        assert [rows.tobytes() for rows in disk.backwards()][::-1] == [rows.tobytes() for rows in disk.rows()]
        seen.append((disk, model.content()))
    for old, expected in seen:
        assert content(old) == expected


def covered(ranges: Sequence[tuple[int, int]]) -> set[int]:
    return {cell for offset, length in ranges for cell in range(offset // Model.STEP, (offset + length) // Model.STEP)}


@settings(derandomize=True, deadline=None, max_examples=100)
@given(steps())
def test_differences_are_exactly_the_cells_that_differ(
    rounds: list[tuple[int, list[tuple[int, int, int]]]],
) -> None:
    store = Memory()
    disk, model = DiskMap(store, 0), Model(0)
    maps: list[tuple[DiskMap, list[tuple[int, int]]]] = []
    for size, changes in rounds:
        scaled = [(start * Model.STEP, length * Model.STEP, chunk) for start, length, chunk in changes]
        disk = applied(disk, rows_of(*scaled), size * Model.STEP)
        model.write(changes, size * Model.STEP)
        maps.append((disk, list(model.cells)))
    for left, left_cells in maps:
        for right, right_cells in maps:
            longest = max(len(left_cells), len(right_cells))
            one, two = (cells + [(0, 0)] * (longest - len(cells)) for cells in (left_cells, right_cells))
            expected = {i for i in range(longest) if one[i] != two[i]}
            ranges = list(left.differences(right))
            assert covered(ranges) == expected
            assert all(a[0] + a[1] < b[0] for a, b in pairwise(ranges))


def test_a_change_costs_the_nodes_above_it() -> None:
    store = Memory()
    size = LEAF_BYTES * FAN_OUT * 2
    every = [(leaf * LEAF_BYTES, UNIT, leaf + 1) for leaf in range(0, FAN_OUT * 2, 8)]
    disk = applied(DiskMap(store, size), rows_of(*every))
    store.fetched = 0
    root, new = disk.replace(rows_of((LEAF_BYTES, UNIT, 7)))
    assert len(new) == 3
    assert store.fetched <= 3
    store.known.update(new)
    store.fetched = 0
    assert list(disk.differences(DiskMap(store, size, root))) == [(LEAF_BYTES, UNIT)]
    assert store.fetched <= 6


def test_zeroing_everything_gives_the_absent_root_without_reading() -> None:
    store = Memory()
    size = LEAF_BYTES * FAN_OUT
    disk = applied(DiskMap(store, size), rows_of(*((i * LEAF_BYTES, UNIT, 1) for i in range(FAN_OUT))))
    store.fetched = 0
    assert disk.replace(nodes.zero_rows(0, size)) == (ABSENT, {})
    assert store.fetched == 0


def test_equal_content_has_an_equal_root_whatever_the_way() -> None:
    store = Memory()
    one = applied(DiskMap(store, 300 * UNIT), rows_of((0, UNIT, 1), (200 * UNIT, UNIT, 2)))
    two = applied(DiskMap(store, 300 * UNIT), rows_of((200 * UNIT, UNIT, 2), (250 * UNIT, UNIT, 3)))
    two = applied(two, rows_of((0, UNIT, 1), (250 * UNIT, UNIT, 0)))
    assert one.root == two.root


def test_rows_of_a_range_are_cut_at_its_ends() -> None:
    disk = applied(DiskMap(Memory(), 40 * UNIT), rows_of((0, UNIT, 1), (UNIT, UNIT, 2)))
    (rows,) = disk.rows(UNIT // 2, UNIT + 4096)
    assert [(int(r["offset"]), int(r["length"]), int(r["chunk_offset"])) for r in rows] == [
        (UNIT // 2, UNIT // 2, UNIT // 2),
        (UNIT, 4096, 0),
    ]
    assert list(disk.rows(2 * UNIT, 3 * UNIT)) == []
    assert list(disk.rows(5, 5)) == []


def test_node_ids_name_every_node_once_on_a_disk_without_repeats() -> None:
    store = Memory()
    size = LEAF_BYTES * FAN_OUT * 2
    disk = applied(DiskMap(store, size), rows_of(*((i * LEAF_BYTES, UNIT, i + 1) for i in range(FAN_OUT * 2))))
    found = [node for batch in disk.node_ids() for node in batch]
    assert len(found) == len(set(found)) == FAN_OUT * 2 + 3
    assert set(found) <= set(store.known)


@pytest.mark.parametrize(
    "changes",
    [rows_of((4096, 4096, 1), (0, 4096, 1)), rows_of((0, 8192, 1), (4096, 4096, 2)), rows_of((UNIT, 1, 1))],
)
def test_changes_that_make_no_sense_are_refused(changes: Rows) -> None:
    with pytest.raises(ValueError, match="changes must be"):
        DiskMap(Memory(), UNIT).replace(changes)


def test_levels() -> None:
    span = LEAF_BYTES
    for level in range(4):
        assert level_for(span) == level
        assert level_for(span + 1) == level + 1
        span *= FAN_OUT


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([0, 1, 2]))
def test_any_bytes_decode_to_a_node_or_an_integrity_error(data: bytes, level: int) -> None:
    try:
        if level:
            assert nodes.encode_inner(nodes.decode_inner(data, level), level) == data
        else:
            assert nodes.encode_leaf(nodes.decode_leaf(data, LEAF_BYTES), LEAF_BYTES) == data
    except IntegrityError:
        pass


def test_every_cut_node_is_refused() -> None:
    leaf = nodes.encode_leaf(rows_of((0, UNIT, 1), (UNIT, CHUNK_MAX, 2)), 0)
    children = nodes.no_children()
    children[5], children[9] = 1, 2
    inner = nodes.encode_inner(children, 1)
    for length in range(len(leaf)):
        with pytest.raises(IntegrityError):
            nodes.decode_leaf(leaf[:length], 0)
    for length in range(len(inner)):
        with pytest.raises(IntegrityError):
            nodes.decode_inner(inner[:length], 1)


@given(st.lists(st.integers(0, 40)))
def test_distinct_is_numpys_unique(values: list[int]) -> None:
    found = nodes.distinct(np.array(values, np.uint64))
    assert (str(found.dtype), found.tolist()) == ("uint64", sorted(set(values)))
