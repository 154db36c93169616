"""Ranges, against plain sets of small units."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vmcellar.backup.ranges import Range, minus, total, union, whole_clusters
from vmcellar.repository.layout import GRID

ANY = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=12)


def cells(ranges: list[Range]) -> set[int]:
    found = [cell for offset, length in ranges for cell in range(offset, offset + length)]
    assert len(found) == len(set(found)), "they cross"
    return set(found)


def spread(ranges: list[Range]) -> set[int]:
    return {cell for offset, length in ranges for cell in range(offset, offset + length)}


@given(ANY)
def test_a_union_holds_every_byte_once_in_order_and_joined(ranges: list[Range]) -> None:
    found = union(ranges)
    assert cells(found) == spread(ranges)
    assert all(sum(one) < other[0] for one, other in itertools.pairwise(found))
    assert total(found) == len(spread(ranges))


@given(ANY, ANY)
def test_what_is_taken_away_is_gone_and_nothing_else(ranges: list[Range], without: list[Range]) -> None:
    found = minus(union(ranges), union(without))
    assert cells(found) == spread(ranges) - spread(without)
    assert found == sorted(found)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 25)), max_size=8), st.integers(0, 50))
def test_a_cluster_counts_only_when_every_byte_of_it_is_in_them(quarters: list[Range], end: int) -> None:
    unit = GRID // 4
    ranges = [(offset * unit, length * unit) for offset, length in quarters]
    inside = spread(quarters)
    expected = {n for n in range(20) if {4 * n + k for k in range(4)} <= inside and 4 * n + 4 <= end}
    found = whole_clusters(ranges, end * unit)
    assert all(offset % GRID == 0 == length % GRID for offset, length in found)
    assert cells([(offset // GRID, length // GRID) for offset, length in found]) == expected


def test_a_byte_too_few_on_either_side_keeps_the_cluster() -> None:
    assert whole_clusters([(1, 3 * GRID - 2)], 9 * GRID) == [(GRID, GRID)]
    assert whole_clusters([(GRID - 1, 1), (GRID, GRID)], 9 * GRID) == [(GRID, GRID)]
