"""The plan of a segment, against a plain model of the disk as a list of grid cells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmcellar.backup import planning
from vmcellar.repository.layout import CHUNK_MAX, GRID
from vmcellar.sources.base import Extent

CELLS = 96


@st.composite
def cell_extents(draw: st.DrawFn, zero: st.SearchStrategy[bool]) -> list[Extent]:
    """Sorted extents without overlap on the grid."""
    borders = sorted(draw(st.sets(st.integers(0, CELLS), max_size=12)))
    pairs = list(zip(borders[::2], borders[1::2], strict=False))
    return [Extent(a * GRID, (b - a) * GRID, draw(zero)) for a, b in pairs]


def cells(extents: list[Extent]) -> dict[int, bool]:
    """Cell number to whether it is a hole."""
    found: dict[int, bool] = {}
    for extent in extents:
        for cell in range(extent.offset // GRID, -(-(extent.offset + extent.length) // GRID)):
            assert cell not in found, "extents overlap"
            found[cell] = extent.zero
    return found


@given(cell_extents(st.just(False)), cell_extents(st.booleans()))
def test_an_incremental_records_every_dirty_cell_and_holes_as_zero(dirty: list[Extent], alloc: list[Extent]) -> None:
    holes = {cell for cell, zero in cells(alloc).items() if zero}
    expected = {cell: cell in holes for cell in cells(dirty)}
    assert cells(planning.incremental_extents(dirty, alloc)) == expected


@given(cell_extents(st.booleans()), st.integers(1, 64))
def test_segments_cover_all_once_in_bounded_pieces(extents: list[Extent], limit_cells: int) -> None:
    parts = planning.segments(extents, limit_cells * GRID)
    read = [Extent(o, n, False) for part in parts for o, n in part.read]
    zero = [Extent(o, n, True) for part in parts for o, n in part.zero]
    assert cells([*read, *zero]) == cells(extents)
    assert all(part.read_bytes <= limit_cells * GRID + CHUNK_MAX for part in parts)
    assert [part.number for part in parts] == list(range(len(parts)))


def test_a_large_disk_has_at_most_64_segments() -> None:
    parts = planning.segments([Extent(0, 1 << 40, False)], 1 << 30)
    assert len(parts) <= planning.SEGMENTS_MAX
    assert sum(part.read_bytes for part in parts) == 1 << 40


@given(cell_extents(st.just(False)))
def test_chunks_cross_no_chunk_border(extents: list[Extent]) -> None:
    for part in planning.segments(extents, 8 * GRID):
        for offset, length in planning.chunks(part):
            assert offset // CHUNK_MAX == (offset + length - 1) // CHUNK_MAX
