"""What runs leave on tiers, and what that costs: bytes that come there, requests, storage while points are kept.

A run stores its share of the day's change, which is the same however many runs there are, and besides it `RUN_BYTES` in
`RUN_OBJECTS` objects that every run writes (map nodes, a part of the index, its point), and at least one pack. So more
runs a day write more and smaller objects, and only that is what another interval saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import TYPE_CHECKING

from vmcellar.backup.report import size_text
from vmcellar.policy.costs import DAY, Stay, bill
from vmcellar.policy.placement import HORIZON as COUNTED
from vmcellar.repository.layout import PACK_BYTES

if TYPE_CHECKING:
    from vmcellar.analysis.judging import Kept
    from vmcellar.analysis.loads import Load
    from vmcellar.config.prices import Prices

RUN_BYTES, RUN_OBJECTS = 2 << 20, 4
"""What a run stores beside its change, and in how many objects."""
HORIZON = 30
"""Days in which no tier is to become full: as far ahead as forecasts of that were measured."""
MONTH = 30


@dataclass(frozen=True, slots=True)
class Store:
    """A tier as advice sees it. Packs come to it when they are `age` days old (0: runs write there); what it costs.

    `moved` is how many bytes moves may bring it in a day, by its `moves:` and `bandwidth:` (inf: no limit); `room` how
    many bytes it can hold in `HORIZON` days beyond the packs that will be there (inf: it has no end, or none that is
    known).
    """

    name: str
    age: float
    prices: Prices
    moved: float = inf
    room: float = inf


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What a tier allows of all VMs together: what `moves` may bring it in a day, else what it can hold."""

    store: Store
    moves: bool

    def takes(self, load: Load, kept: Kept, runs: int) -> float:
        """Bytes of it that a VM takes with so many runs a day; of what it can hold, those beside packs."""
        return moved(load, kept, runs, self.store) if self.moves else RUN_BYTES * held(kept, runs)

    @property
    def most(self) -> float:
        """How many bytes all VMs may take."""
        return self.store.moved if self.moves else self.store.room

    @property
    def why(self) -> str:
        """In words, for who gets fewer runs because of it."""
        if self.moves:
            return f"with more runs moves could not bring {self.store.name} all in its windows"
        return f"with more runs {self.store.name} would be full within {HORIZON} days"

    def broken(self, by: float) -> str:
        """In words, for what no schedule can help."""
        if self.moves:
            return (
                f"{self.store.name}: {size_text(by)} a day more come to it than its moves: and bandwidth: let through, "
                "with the fewest runs that keep every RPO"
            )
        return (
            f"{self.store.name}: full within {HORIZON} days with the fewest runs that keep every RPO; {size_text(by)} "
            "are too few (`vmcellar capacity` says when)"
        )


def ceilings_of(stores: Sequence[Store]) -> list[Ceiling]:
    """Those of the tiers that have any."""
    rooms = [Ceiling(store, moves=False) for store in stores if store.room < inf]
    return rooms + [Ceiling(store, moves=True) for store in stores if store.moved < inf]


def held(kept: Kept, runs: int) -> float:
    """How many points of a VM there are after `HORIZON` days of so many runs: those of now that stay, and new ones."""
    stay = kept.there * max(1.0 - HORIZON / kept.days, 0.0)
    points = stay + runs * min(HORIZON, kept.days)
    return points if kept.points is None else min(points, float(kept.points))


def moved(load: Load, kept: Kept, runs: int, store: Store) -> float:
    """Bytes a day that moves bring to a tier behind the first: packs that live as long, and a copy of all else."""
    packs = load.day_bytes * load.share if kept.days > store.age else 0.0
    return packs + runs * RUN_BYTES


def money(load: Load, kept: Kept, runs: int, stores: Sequence[Store]) -> float:
    """What a day of so many runs costs until its points are dropped, a year of that at the most, in the currency of the
    price tables: requests, storage, what goes before its minimum time. Points of generations live as long as so many
    runs make room for them.
    """
    stored = load.day_bytes * load.share / runs
    packs = max(ceil(stored / PACK_BYTES), 1)
    life = kept.days if kept.points is None else min(kept.days, kept.points / runs)
    data = packs * cheapest(stores, stored / packs, kept.days)
    return runs * (data + RUN_OBJECTS * cheapest(stores[:1], RUN_BYTES / RUN_OBJECTS, life))


def cheapest(stores: Sequence[Store], size: float, days: float) -> float:
    """What an object costs that is kept for so many days: it goes down as the tiers' ages say, or, as placement does,
    stays on a nearer one where going deeper does not pay.
    """
    return min(_lain(stores[: depth + 1], size, days) for depth in range(len(stores)))


def _lain(stores: Sequence[Store], size: float, days: float) -> float:
    ends = days * DAY
    edges = [*(store.age * DAY for store in stores), inf]
    stays = [
        Stay(store.name, round(size), begin, None if min(end, ends) > COUNTED else min(end, ends))
        for store, begin, end in zip(stores, edges[:-1], edges[1:], strict=True)
        if begin < min(ends, COUNTED)
    ]
    return bill({store.name: store.prices for store in stores}, stays, 0.0, COUNTED + 1.0).total
