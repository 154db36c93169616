"""Laying runs on the minutes of a day so that a host has as few at once as can be, and writes no faster than it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vmcellar.analysis.loads import DAY_MINUTES, Load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

KEEP = 1.1
"""The first option, today's, stays when it is no worse than the best by this factor."""
PASSES, MORE_PASSES = 2, 6
"""How often each VM is laid out, and how often more while a limit is broken and that still helps."""
SLOWER = 1.0
"""Runs are laid as long as they take when this many spreads slower than usual."""
TOLERANCE = 1 - 1e-9
"""Sums of rates are exact to so much."""


class Print(NamedTuple):
    """The minutes of the day that runs of a VM take, which share of each, and the bytes a second that they write."""

    minutes: NDArray[np.int64]
    shares: Floats
    writes: float


@dataclass(slots=True)
class Grid:
    """How many runs a host has in each minute of a day, as shares of a minute, and bytes a second that they write: a
    run in each minute that it touches. `writes` is what they may, by minute; empty: as much as they like.
    """

    concurrent: int
    writes: Sequence[float] = ()
    busy: Floats = field(default_factory=lambda: np.zeros(DAY_MINUTES))
    flow: Floats = field(default_factory=lambda: np.zeros(DAY_MINUTES))
    most: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.most = np.array(self.writes if len(self.writes) else np.full(DAY_MINUTES, np.inf), dtype=np.float64)

    def add(self, starts: Sequence[int], load: Load, sign: float = 1.0) -> None:
        """Lay a VM's runs on the grid, or with `sign` -1 take them away."""
        self.put(Print(*footprint(starts, load), load.writes), sign)

    def put(self, runs: Print, sign: float = 1.0) -> None:
        """The same with a footprint."""
        np.add.at(self.busy, runs.minutes, sign * runs.shares)
        np.add.at(self.flow, runs.minutes, sign * runs.writes)

    def price(self, runs: Print) -> float:
        """What it costs to lie there: the square of the load, and much more over what the host runs at once."""
        after = self.busy[runs.minutes] + runs.shares
        over = np.maximum(after - self.concurrent, 0.0)
        return float((runs.shares * (after + 100.0 * over)).sum())

    def excess(self, runs: Print) -> float:
        """By how much more would be written than may be, as a share of that, summed over the minutes."""
        most = self.most[runs.minutes]
        over = (self.flow[runs.minutes] + runs.writes) * TOLERANCE > most
        return float(((self.flow[runs.minutes] + runs.writes)[over] / most[over] - 1).sum())

    @property
    def fast(self) -> NDArray[np.int64]:
        """The minutes in which more is written than may be."""
        return np.flatnonzero(self.flow * TOLERANCE > self.most).astype(np.int64)

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
    """The starts of each VM, the grid with all of them, and whom what may be written keeps from another time."""

    starts: dict[str, tuple[int, ...]]
    grid: Grid
    paced: frozenset[str] = frozenset()


def place(
    loads: Mapping[str, Load],
    options: Mapping[str, Sequence[tuple[int, ...]]],
    concurrent: int,
    writes: Sequence[float] = (),
) -> Placed:
    """For each VM the option that lies best beside all others; the largest first, then each once more. While more is
    written than may be and that helps, again.
    """
    grid = Grid(concurrent, writes)
    prints = {
        vm: [Print(*footprint(starts, loads[vm]), loads[vm].writes) for starts in ways] for vm, ways in options.items()
    }
    order = sorted(loads, key=lambda vm: (-prints[vm][0].shares.sum(), vm))
    chosen: dict[str, int] = {}
    paced: set[str] = set()
    before = np.inf
    for turn in range(PASSES + MORE_PASSES):
        over = float(np.maximum(grid.flow - grid.most, 0.0).sum())
        if turn >= PASSES and (not len(grid.fast) or over >= before):
            break
        before = over if turn >= PASSES else before
        for vm in order:
            if vm in chosen:
                grid.put(prints[vm][chosen[vm]], -1.0)
            chosen[vm], other = _best(grid, prints[vm])
            paced = paced | {vm} if other else paced - {vm}
            grid.put(prints[vm][chosen[vm]])
    return Placed({vm: options[vm][index] for vm, index in chosen.items()}, grid, frozenset(paced))


def _best(grid: Grid, ways: Sequence[Print]) -> tuple[int, bool]:
    """The option to take, and whether it would be another one if any speed of writing were allowed."""
    prices = [grid.price(way) for way in ways]
    free = _cheapest(prices, range(len(ways)))
    if not len(grid.writes):
        return free, False
    over = [grid.excess(way) for way in ways]
    least = min(over) + 1e-9
    best = _cheapest(prices, [index for index, each in enumerate(over) if each <= least])
    return best, over[free] > least


def _cheapest(prices: Sequence[float], among: Sequence[int]) -> int:
    """The first of some options, if that is today's and no worse than the best by `KEEP`; else the best."""
    best = min(among, key=lambda index: prices[index])
    return 0 if among[0] == 0 and prices[0] <= KEEP * prices[best] else best
