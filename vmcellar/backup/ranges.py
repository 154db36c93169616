"""Arithmetic of ranges of a disk: (offset, length) in bytes, sorted, none crossing another. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmcellar.repository.layout import GRID

Range = tuple[int, int]


def union(ranges: Iterable[Range]) -> list[Range]:
    """All bytes of `ranges`, which may come in any order, cross and touch."""
    result: list[Range] = []
    for offset, length in sorted(ranges):
        if length and result and offset <= sum(result[-1]):
            start = result[-1][0]
            result[-1] = (start, max(sum(result[-1]), offset + length) - start)
        elif length:
            result.append((offset, length))
    return result


def minus(ranges: Iterable[Range], without: Sequence[Range]) -> list[Range]:
    """What of `ranges`, in order and not crossing, is in none of `without`. Pieces that touch stay as they came."""
    result: list[Range] = []
    number = 0
    for offset, length in ranges:
        position, end = offset, offset + length
        while number < len(without) and sum(without[number]) <= position:
            number += 1
        look = number
        while position < end:
            if look == len(without) or without[look][0] >= end:
                result.append((position, end - position))
                break
            if without[look][0] > position:
                result.append((position, without[look][0] - position))
            position = sum(without[look])
            look += 1
    return result


def whole_clusters(ranges: Iterable[Range], size: int) -> list[Range]:
    """The clusters of GRID bytes of a disk of `size` bytes that lie in `ranges` whole."""
    result = []
    for offset, length in union(ranges):
        start, end = -(-offset // GRID) * GRID, min(offset + length, size) // GRID * GRID
        if start < end:
            result.append((start, end - start))
    return result


def total(ranges: Iterable[Range]) -> int:
    """How many bytes they are."""
    return sum(length for _, length in ranges)
