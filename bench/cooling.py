"""`./run bench cooling`: what of old data leaves the hot tier, with and without taking mixed packs apart.

A model, not the engine: numbers of 64 KiB clusters in packs of 64 MiB, as a full backup and daily incrementals make
them, and the rule of vmcellar/upkeep/separate.py. It runs in seconds for ninety days of a 16 GiB disk.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PACK = 1024
"""Clusters of 64 KiB in a pack."""
GIB = 16384
"""Clusters in a GiB."""
RUN = 16
"""Clusters that a guest writes one after the other, on average."""
HOT_DAYS = 7
FOR_EVER = 1 << 30

Clusters = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Load:
    """A share of the disk that is written each day, of which `tenth` goes to one tenth of it."""

    name: str
    share: float
    tenth: float


LOADS = (
    Load("1 % a day, 80 % on a tenth", 0.01, 0.8),
    Load("3 % a day, 80 % on a tenth", 0.03, 0.8),
    Load("3 % a day, evenly", 0.03, 0.0),
    Load("10 % a day, 80 % on a tenth", 0.10, 0.8),
)


@dataclass(slots=True)
class Cellar:
    """Every cluster that was ever stored: its pack, and the day of the youngest point that needs it."""

    disk: Clusters
    pack: Clusters
    needed: Clusters
    packs: int
    rewritten: int = 0
    dice: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    @classmethod
    def full(cls, clusters: int) -> Cellar:
        """After the first backup."""
        pack = np.arange(clusters) // PACK
        return cls(np.arange(clusters), pack, np.full(clusters, FOR_EVER), int(pack[-1]) + 1)

    def _pack(self, chosen: Clusters) -> None:
        self.pack[chosen] = self.packs + np.arange(len(chosen)) // PACK
        self.packs += -(-len(chosen) // PACK)

    def write(self, load: Load, day: int) -> None:
        """A day's writes, and the backup of them."""
        size = len(self.disk)
        runs = int(size * load.share / RUN)
        spot = self.dice.random(runs) < load.tenth
        starts = np.where(spot, self.dice.integers(0, size // 10, runs), self.dice.integers(0, size, runs))
        lengths = self.dice.geometric(1 / RUN, runs)
        ends = np.minimum(starts + lengths, size)
        written = np.unique(np.concatenate([np.arange(*run) for run in zip(starts, ends, strict=True)]))
        self.needed[self.disk[written]] = day - 1
        new = len(self.pack) + np.arange(len(written))
        self.disk[written] = new
        self.pack = np.concatenate([self.pack, np.zeros(len(new), np.int64)])
        self.needed = np.concatenate([self.needed, np.full(len(new), FOR_EVER)])
        self._pack(new)

    def cooled(self, day: int) -> NDArray[np.bool_]:
        """Clusters that no point of the last days needs."""
        return self.needed < day - HOT_DAYS

    def on_hot(self, day: int) -> NDArray[np.bool_]:
        """Clusters that stay hot: those of packs that hold any which has not cooled."""
        warm = np.bincount(self.pack[~self.cooled(day)], minlength=self.packs)
        return warm[self.pack] > 0

    def separate(self, day: int) -> None:
        """Rewrite packs of which at least half has cooled, and not all."""
        cooled, hot = self.cooled(day), self.on_hot(day)
        size = np.bincount(self.pack, minlength=self.packs)
        gone = np.bincount(self.pack[cooled], minlength=self.packs)
        chosen = hot & (2 * gone >= size)[self.pack]
        self.rewritten += int(chosen.sum())
        for part in (chosen & cooled, chosen & ~cooled):
            self._pack(np.flatnonzero(part))


def main() -> int:
    """Print a line per load and way."""
    parser = argparse.ArgumentParser(prog="bench cooling", description=__doc__)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--size", type=int, default=16, metavar="GIB")
    arguments = parser.parse_args()
    print(f"{'load':28} {'stored':>8} {'least hot':>10} {'hot':>10} {'hot, separated':>15} {'rewritten':>10}   GiB")
    for load in LOADS:
        hot = []
        for separated in (False, True):
            cellar = Cellar.full(arguments.size * GIB)
            for day in range(1, arguments.days + 1):
                cellar.write(load, day)
                if separated and day % HOT_DAYS == 0:
                    cellar.separate(day)
            hot.append(cellar.on_hot(arguments.days).sum() / GIB)
        least = (~cellar.cooled(arguments.days)).sum() / GIB
        figures = (len(cellar.pack) / GIB, least, *hot, cellar.rewritten / GIB)
        print(f"{load.name:28} {figures[0]:8.1f} {least:10.1f} {hot[0]:10.1f} {hot[1]:15.1f} {figures[-1]:10.1f}")
    return 0
