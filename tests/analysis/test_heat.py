"""The heat map of a real repository, against what was written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.upkeep.world import PIECE, PIECES, SIZE, World
from vmcellar.analysis.heat import _covered, damage_of_newest, heat_map
from vmcellar.analysis.plots import heat
from vmcellar.errors import PermanentError


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ThreadPoolExecutor(2) as pool:
        yield World.make(tmp_path, pool)


def test_each_backup_is_a_row_and_each_part_of_the_disk_a_column(world: World) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1, 1: 2, 5: 3})
    world.now += 3600
    second = world.back_up(host, {1: 7}, first)
    world.now += 3600
    third = world.back_up(host, {0: 0, 4: 9}, second)
    found = heat_map(host, "web", "vda", columns=PIECES)
    assert (found.points, found.size, found.cell) == ((second.id, third.id), SIZE, PIECE)
    assert found.changed.tolist() == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0]]
    assert found.bytes_changed.tolist() == [PIECE, 2 * PIECE]
    assert (found.times[1] - found.times[0]).total_seconds() == 3600
    halves = heat_map(host, "web", "vda", columns=2)
    assert halves.changed.tolist() == [[pytest.approx(1 / 3), 0], [pytest.approx(1 / 3), pytest.approx(1 / 3)]]
    assert heat_map(host, "web", "vda", most_points=2).points == (third.id,)
    host.close()


def test_a_disk_with_one_point_has_none(world: World) -> None:
    host = world.host()
    world.back_up(host, {0: 1})
    for disk, count in (("vda", 1), ("vdz", 0)):
        with pytest.raises(PermanentError, match=f"web: {count} of its points have disk {disk}"):
            heat_map(host, "web", disk)
    host.close()


def test_a_damaged_map_takes_its_own_rows_and_is_named(world: World) -> None:
    host = world.host()
    points = [world.back_up(host, {0: 1})]
    for number in range(2, 6):
        world.now += 3600
        before = world.keys("meta/")
        points.append(world.back_up(host, {1: number}, points[-1]))
        if number == 3:
            (own,) = world.keys("meta/") - before
    host.close()
    file = world.folder / "hot" / own
    file.chmod(0o600)
    file.write_bytes(bytes(len(file.read_bytes())))
    fresh = world.host("fresh")
    found = heat_map(fresh, "web", "vda", columns=PIECES)
    assert found.points == tuple(point.id for point in points[1:])
    assert [bool(np.isnan(row).any()) for row in found.changed] == [False, True, True, False]
    assert list(found.damaged) == [points[2].id]
    assert own in found.damaged[points[2].id]
    assert heat(found).axes, "it is drawn all the same"
    assert damage_of_newest(fresh) == {}
    fresh.close()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=8), st.integers(1, 30))
def test_bytes_within_edges_are_those_of_a_count_by_hand(gaps: list[tuple[int, int]], cell: int) -> None:
    ranges, at = [], 0
    for gap, length in gaps:
        ranges.append((at + gap, length))
        at += gap + length
    edges = np.append(np.arange(0, at + 5, cell), at + 5)
    touched = np.zeros(at + 5)
    for offset, length in ranges:
        touched[offset : offset + length] = 1
    by_hand = [touched[left:right].sum() for left, right in itertools.pairwise(edges)]
    assert _covered(ranges, edges).tolist() == by_hand
