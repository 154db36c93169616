"""A disk that was cut and grew again between two points: what its tracker forgot is recorded, whatever lies there now.

The hypervisor is a model here; the real one is in `tests/proof/test_cut_and_grown.py`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.faults.cellar import Cellar, stand_ins
from tests.faults.imagesource import ImageCapture, ImageSource, grid
from tests.repository.writing import read_map
from vmcellar.backup.cut_off import WINDOW
from vmcellar.backup.model import PointSummary
from vmcellar.repository.layout import GRID
from vmcellar.sources.base import CaptureRequest, Extent

MIB = 1 << 20
SIZE = 8 * MIB + 512


@dataclass
class Disk:
    """A qcow2 image. `backing`: it has a backing file; `preallocated`: nothing of it is a hole."""

    cellar: Cellar
    cluster: int = WINDOW
    backing: bool = False
    preallocated: bool = False
    data: bytearray = field(default_factory=lambda: bytearray(SIZE), repr=False)
    changed: set[int] = field(default_factory=set)

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data
        self.changed.update(range(offset // GRID, -(-(offset + len(data)) // GRID)))

    def cut_and_grow(self, size: int) -> None:
        """As QEMU 7.2 does: the tracker keeps the bit that the cut goes through, and forgets those behind it."""
        kept = size if self.backing else min(-(-size // self.cluster) * self.cluster, SIZE)
        self.data[kept:] = bytes(SIZE - kept)
        self.changed = {bit for bit in self.changed if bit * GRID < size}

    def dirty(self) -> list[Extent]:
        return [Extent(bit * GRID, min(GRID, SIZE - bit * GRID)) for bit in sorted(self.changed)]

    def allocated(self) -> list[Extent]:
        if self.preallocated:
            return [Extent(0, SIZE)]
        found: list[Extent] = []
        for extent in grid(bytes(self.data), None):
            last = found[-1] if found else None
            if last is not None and last.zero == extent.zero:
                found[-1] = Extent(last.offset, last.length + extent.length, last.zero)
            else:
                found.append(extent)
        return found

    def back_up(self) -> PointSummary:
        """One whose disk in the repository is this one, byte for byte."""
        self.cellar.source.write("db", "vda", bytes(self.data))
        made = self.cellar.back_up("db")
        repository = self.cellar.open()
        (record,) = repository.point(made.id).disks
        stored = read_map(repository, record)
        repository.close()
        wrong = [extent.offset for extent in grid(stored, bytes(self.data))]
        assert wrong == []
        self.changed.clear()
        return made


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    for module, name, value in stand_ins():
        monkeypatch.setattr(module, name, value)
    made = Disk(Cellar(tmp_path))
    made.cellar.make()
    begin = ImageSource.begin

    def with_clusters(self: ImageSource, request: CaptureRequest) -> ImageCapture:
        held = begin(self, request).result
        disks = tuple(replace(each, cluster=made.cluster) for each in held.disks)
        return ImageCapture(self, replace(held, disks=disks))

    monkeypatch.setattr(ImageSource, "begin", with_clusters)
    monkeypatch.setattr(ImageCapture, "dirty", lambda self, _: made.dirty() if self.result.parent else None)
    monkeypatch.setattr(ImageCapture, "allocated", lambda *_: made.allocated())
    return made


def noticed(point: PointSummary) -> bool:
    return any("cut and grown" in warning for warning in point.warnings)


@pytest.mark.parametrize(
    "size", [5 * MIB + 100 * 1024, SIZE - 1024, 4 * MIB], ids=["mid", "in the last cluster", "even"]
)
def test_zeroes_that_are_written_at_the_cut(disk: Disk, size: int) -> None:
    disk.backing = True
    disk.write(0, random.randbytes(SIZE))
    disk.back_up()
    disk.cut_and_grow(size)
    point = disk.back_up()
    assert (point.kind, noticed(point)) == ("incremental", True)
    assert not noticed(disk.back_up())


def test_all_behind_the_cut_written_anew_but_its_own_cluster(disk: Disk) -> None:
    disk.backing = True
    disk.write(0, random.randbytes(SIZE))
    disk.back_up()
    disk.cut_and_grow(5 * MIB + 100 * 1024)
    disk.write(6 * MIB, random.randbytes(SIZE - 6 * MIB))
    assert noticed(disk.back_up())


def test_what_was_written_before_the_cut_comes_back_with_the_cluster(disk: Disk) -> None:
    disk.write(MIB, random.randbytes(4 * MIB))
    disk.back_up()
    disk.write(5 * MIB + 300 * 1024, b"forgotten")  # where the parent has nothing
    disk.cut_and_grow(5 * MIB)
    assert noticed(disk.back_up())


def test_a_preallocated_disk_that_grew_by_data(disk: Disk) -> None:
    disk.preallocated = disk.backing = True
    disk.write(MIB, random.randbytes(4 * MIB))
    disk.back_up()
    disk.cut_and_grow(2 * MIB + GRID)
    assert noticed(disk.back_up())


@pytest.mark.parametrize("preallocated", [False, True])
def test_an_untouched_end_costs_a_look_and_nothing_that_is_kept(disk: Disk, preallocated: bool) -> None:
    disk.preallocated = preallocated
    disk.write(MIB, random.randbytes(4 * MIB))
    disk.back_up()
    disk.write(0, random.randbytes(GRID))
    point = disk.back_up()
    assert not noticed(point)
    assert point.bytes_read == GRID


@pytest.mark.parametrize("cluster", [GRID, 2 * GRID])
def test_a_chunk_that_changed_in_part(disk: Disk, cluster: int) -> None:
    """Its rest has no digest; where something may have come back with a large cluster, it is read anew."""
    disk.cluster = cluster
    disk.write(MIB, random.randbytes(4 * MIB - GRID) + b"end of data".ljust(GRID, b"\0"))
    disk.back_up()
    disk.write(5 * MIB - 3 * GRID, random.randbytes(GRID))
    point = disk.back_up()
    assert not noticed(point)
    assert point.bytes_read == (GRID + GRID - 512 if cluster == GRID else MIB)
    disk.write(5 * MIB - 3 * GRID, random.randbytes(GRID))
    assert disk.back_up().bytes_read == GRID


@pytest.mark.parametrize("backing", [False, True])
def test_a_cut_through_a_chunk_that_changed_in_part(disk: Disk, backing: bool) -> None:
    disk.cluster, disk.backing = GRID, backing
    disk.write(MIB, random.randbytes(4 * MIB))
    disk.back_up()
    disk.write(4 * MIB, random.randbytes(GRID))
    disk.cut_and_grow(5 * MIB - GRID // 2)
    disk.back_up()


@pytest.mark.parametrize("seed", range(12))
def test_many_writes_and_cuts(disk: Disk, seed: int) -> None:
    dice = random.Random(seed)
    disk.cluster, disk.backing = dice.choice([GRID, MIB, WINDOW]), dice.random() < 0.5
    disk.preallocated = dice.random() < 0.2
    for _ in range(3):
        for _ in range(dice.randrange(6)):
            offset = dice.randrange(0, SIZE - 3 * MIB, 512)
            disk.write(offset, dice.randbytes(dice.choice([512, GRID, 300 * 1024, 3 * MIB])))
        if dice.random() < 0.7:
            disk.cut_and_grow(dice.randrange(512, SIZE, 512))
        disk.back_up()
