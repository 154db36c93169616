"""Disks for the benches: honest mixed data, the same for the same seed and system, built once into the cache folder.

About a third files of this system's /usr (programs, libraries, Python), a third incompressible, a third log-like text
with repeated pieces and runs of zeroes; laid out in pieces of 64 KiB to 4 MiB with holes between.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.disks import MIB, DiskSpec
from lab.guest import LabGuest
from lab.mixeddata import Stream, log_text, system_files
from lab.monitor import poke_many
from lab.paths import give_to_qemu, lab_dir, lab_lock, vm_folder
from lab.shellcommand import call

GIB = 1 << 30
GRID = 64 * 1024
MEAN_PIECE = 2 * MIB


@dataclass(frozen=True, slots=True)
class BigDisk:
    """A recipe: a disk of `size` bytes that holds about `data` bytes, "mixed" or "random" by `kind`."""

    name: str
    size: int
    data: int
    kind: str = "mixed"
    seed: int = 1

    @property
    def cached(self) -> Path:
        """The image in the cache folder; its name changes with the recipe and with this module."""
        recipe = hashlib.blake2b(Path(__file__).read_bytes() + repr(self).encode(), digest_size=4).hexdigest()
        return lab_dir() / f"bigdisk-{self.name}-{recipe}.qcow2"


SMALL = BigDisk("2g", 2 * GIB, 1100 * MIB)
LARGE = BigDisk("8g", 8 * GIB, 4608 * MIB)
SPARSE = BigDisk("1t", 1024 * GIB, 4 * GIB, kind="random")
DISKS = {disk.name: disk for disk in (SMALL, LARGE, SPARSE)}


def build(disk: BigDisk) -> Path:
    """The cached image of a disk, built when missing (half a minute for 8 GiB). Never run a guest on it: copy it."""
    with lab_lock(f"bigdisk-{disk.name}"):
        target = disk.cached
        if not target.exists():
            for old in lab_dir().glob(f"bigdisk-{disk.name}-*"):
                old.unlink()
            raw = target.with_suffix(".raw")
            _write_raw(disk, raw)
            unfinished = target.with_suffix(".part")
            call(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, unfinished], seconds=1200)
            raw.unlink()
            unfinished.rename(target)
        return target


@contextmanager
def big_guest(*disks: BigDisk) -> Iterator[LabGuest]:
    """A paused guest whose disks vda, vdb, … are private copies of the cached images; removed with its copies."""
    with vm_folder("bench") as folder:
        specs, images = [], {}
        for number, disk in enumerate(disks):
            target = f"vd{chr(ord('a') + number)}"
            images[target] = _private_copy(build(disk), folder / f"{target}.qcow2")
            specs.append(DiskSpec(target, disk.size))
        with LabGuest(folder, specs, images=images) as guest:
            guest.start(paused=True)
            yield guest


def scatter(guest: LabGuest, target: str, total: int, seed: int) -> list[int]:
    """Write `total` bytes as seeded pieces of 64 KiB all over the disk's 64 KiB grid; their offsets, sorted."""
    random = np.random.default_rng(seed)
    places = random.choice(guest.disks[target].size // GRID, size=total // GRID, replace=False)
    offsets = sorted(int(place) * GRID for place in places)
    poke_many(guest.domain, target, ((offset, random.bytes(GRID)) for offset in offsets), guest.folder)
    return offsets


def _private_copy(image: Path, target: Path) -> Path:
    call(["cp", "--sparse=always", "--reflink=auto", image, target], seconds=600)
    give_to_qemu(target)
    return target


def _write_raw(disk: BigDisk, path: Path) -> None:
    random = np.random.default_rng(disk.seed)
    # Holes of random size spread the pieces over the whole disk; together they are what the data leaves free.
    longest_hole = 2 * (disk.size - disk.data) * 9 // 10 * MEAN_PIECE // disk.data
    position = written = 0
    with path.open("wb") as file:
        os.truncate(file.fileno(), disk.size)
        for piece in _mixed(random) if disk.kind == "mixed" else _random(random):
            os.pwrite(file.fileno(), piece, position)
            written += len(piece)
            position += len(piece) + GRID * int(random.integers(longest_hole // GRID))
            if written >= disk.data or position + 4 * MIB > disk.size:
                break


def _random(random: np.random.Generator) -> Iterator[bytes]:
    while True:
        yield random.bytes(MEAN_PIECE)


def _mixed(random: np.random.Generator) -> Iterator[bytes]:
    """Pieces of 64 KiB to 4 MiB: system files, incompressible, text in turn; some text repeats, some runs are zero."""
    system, text = Stream(system_files(random)), Stream(log_text(random))
    earlier: list[bytes] = []
    while True:
        length = GRID * int(random.integers(1, 65))
        yield system.take(length)
        yield random.bytes(length)
        piece = text.take(length)
        chance = random.random()
        if earlier and chance < 0.1:
            piece = earlier[int(random.integers(len(earlier)))]
        elif chance < 0.2:
            piece = piece[: length // 2].ljust(length, b"\0")
        earlier = [*earlier[-31:], piece]
        yield piece


def main(names: list[str]) -> int:
    """`python -m lab.bigdisk [2g] [8g] [1t]`: build these images (all without a name) and print their paths."""
    for name in names or DISKS:
        print(build(DISKS[name]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
