"""Chunks that are written together: what lands is what each of them said, wherever they lie."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.errors import TransientError
from vmcellar.restore.gather import ALONE, TOGETHER, gathered

KIB = 1024
SIZE = 8 << 20


class Disk:
    """What was written, and in which pieces; it fails from byte `fails` on."""

    def __init__(self, fails: int = SIZE) -> None:
        self.content = bytearray(SIZE)
        self.writes: list[tuple[int, int]] = []
        self.fails = fails

    def write(self, offset: int, data: memoryview) -> None:
        """See DiskTarget."""
        if offset + len(data) > self.fails:
            raise TransientError("the device went away")
        self.content[offset : offset + len(data)] = data
        self.writes.append((offset, len(data)))

    def finish(self) -> None:
        """See DiskTarget."""

    def abort(self) -> None:
        """See DiskTarget."""


@given(
    lengths=st.lists(st.sampled_from([512, 4 * KIB, 96 * KIB, ALONE, ALONE + 512, 1 << 20]), max_size=20),
    skips=st.lists(st.booleans(), min_size=20, max_size=20),
    back=st.booleans(),
    seed=st.integers(0, 99),
)
def test_all_lands_where_it_belongs(lengths: list[int], skips: list[bool], back: bool, seed: int) -> None:
    dice = random.Random(seed)
    expected, disk, offset, pieces = bytearray(SIZE), Disk(), 0, []
    for length, skip in zip(lengths, skips, strict=False):
        offset += 4 * KIB * skip
        if offset + length <= SIZE:
            pieces.append((offset, dice.randbytes(length)))
        offset += length
    memory = memoryview(bytearray(1 << 20))  # used again for each piece, as a worker's is
    with gathered(disk) as image:
        for place, data in reversed(pieces) if back else pieces:
            expected[place : place + len(data)] = data
            memory[: len(data)] = data
            image.write(place, memory[: len(data)])
    assert disk.content == expected
    assert sum(length for _, length in disk.writes) == sum(len(data) for _, data in pieces)


def test_neighbours_are_one_write_and_long_ones_are_not_copied() -> None:
    disk = Disk()
    small = memoryview(bytes(96 * KIB))
    with gathered(disk) as image:
        for number in range(40):
            image.write(number * len(small), small)
    assert [length for _, length in disk.writes] == [TOGETHER // len(small) * len(small), 19 * len(small)]
    disk.writes.clear()
    with gathered(disk) as image:
        image.write(0, memoryview(bytes(ALONE)))
        assert disk.writes == [(0, ALONE)]


def test_an_error_of_the_last_write_is_told() -> None:
    disk = Disk(fails=100 * KIB)
    with pytest.raises(TransientError, match="went away"), gathered(disk) as image:  # noqa: PT012
        image.write(0, memoryview(bytes(96 * KIB)))
        image.write(96 * KIB, memoryview(bytes(96 * KIB)))
    assert not disk.writes
