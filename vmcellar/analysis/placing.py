"""Laying runs on the minutes of a day so that a host has as few at once as can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.analysis.loads import DAY_MINUTES, Load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

KEEP = 1.1
"""The first option, today's, stays when it is no worse than the best by this factor."""
PASSES = 2
SLOWER = 1.0
"""Runs are laid as long as they take when this many spreads slower than usual."""


@dataclass(slots=True)
class Grid:
    """How many runs a host has in each minute of a day, as shares of a minute."""

    concurrent: int
    busy: Floats = field(default_factory=lambda: np.zeros(DAY_MINUTES))

    def add(self, starts: Sequence[int], load: Load, sign: float = 1.0) -> None:
        """Lay a VM's runs on the grid, or with `sign` -1 take them away."""
        minutes, shares = footprint(starts, load)
        np.add.at(self.busy, minutes, sign * shares)

    def price(self, minutes: NDArray[np.int64], shares: Floats) -> float:
        """What it costs to lie there: the square of the load, and much more over what the host runs at once."""
        after = self.busy[minutes] + shares
        over = np.maximum(after - self.concurrent, 0.0)
        return float((shares * (after + 100.0 * over)).sum())

    def peak(self) -> int:
        """The most runs at once."""
        return int(np.ceil(self.busy.max() - 1e-9))


def durations(starts: Sequence[int], load: Load) -> Floats:
    """Minutes that the runs of these starts (ascending) take when they are `SLOWER` than usual."""
    begins = np.array(starts, dtype=np.float64)
    gaps = np.diff(begins, prepend=begins[-1] - DAY_MINUTES)
    took = load.seconds(load.upto(begins) - load.upto(begins - gaps)) * np.exp(SLOWER * load.spread) / 60
    return np.asarray(np.minimum(took, DAY_MINUTES), dtype=np.float64)


def footprint(starts: Sequence[int], load: Load) -> tuple[NDArray[np.int64], Floats]:
    """The minutes of the day that runs take, and which share of each."""
    ordered = sorted(starts)
    minutes, shares = [], []
    for begin, length in zip(ordered, durations(ordered, load), strict=True):
        whole = int(np.ceil(length))
        minutes.append((begin + np.arange(whole)) % DAY_MINUTES)
        part = np.ones(whole)
        part[-1] = length - (whole - 1)
        shares.append(part)
    return np.concatenate(minutes).astype(np.int64), np.concatenate(shares)


@dataclass(frozen=True, slots=True)
class Placed:
    """The starts of each VM, and the grid with all of them."""

    starts: dict[str, tuple[int, ...]]
    grid: Grid


def place(loads: Mapping[str, Load], options: Mapping[str, Sequence[tuple[int, ...]]], concurrent: int) -> Placed:
    """For each VM the option that lies best beside all others; the largest first, then each once more."""
    grid = Grid(concurrent)
    prints = {vm: [footprint(starts, loads[vm]) for starts in ways] for vm, ways in options.items()}
    order = sorted(loads, key=lambda vm: (-prints[vm][0][1].sum(), vm))
    chosen: dict[str, int] = {}
    for _ in range(PASSES):
        for vm in order:
            if vm in chosen:
                minutes, shares = prints[vm][chosen[vm]]
                np.add.at(grid.busy, minutes, -shares)
            prices = [grid.price(minutes, shares) for minutes, shares in prints[vm]]
            best = int(np.argmin(prices))
            chosen[vm] = 0 if prices[0] <= KEEP * prices[best] else best
            minutes, shares = prints[vm][chosen[vm]]
            np.add.at(grid.busy, minutes, shares)
    return Placed({vm: options[vm][index] for vm, index in chosen.items()}, grid)
