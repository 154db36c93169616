"""A World whose packs may lie on three directories: hot, warm and cold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.upkeep.world import DAY, World
from vmcellar.config.placement import Placement
from vmcellar.config.prices import Prices
from vmcellar.policy.placement import sites_of
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.tiers.base import Tier
from vmcellar.tiers.cellar import CellarTier
from vmcellar.tiers.local import LocalTier
from vmcellar.upkeep.rebalance import RebalanceReport, Rules, rebalance

NAMES = ("hot", "warm", "cold")
PLACEMENT = Placement.model_validate({"hot": "7d", "warm": "30d", "cold": "rest"})


@dataclass
class TieredWorld(World):
    """`others` are what stands behind the tiers' names; tests put faulty ones there."""

    others: dict[str, Tier] = field(default_factory=dict)
    copies: int = 1

    @classmethod
    def make(cls, folder: Path, pool: ThreadPoolExecutor) -> Self:
        made = cls(folder, make_local(folder, "hot"), pool)
        made.others = {name: make_local(folder, name) for name in NAMES[1:]}
        made.tier.put("config", b"config")  # a mirror is made of what has these
        made.tier.put("keys/one", b"key")
        return made

    def reopen(self) -> None:
        """The tiers as the directories are now, without faults."""
        self.tier = LocalTier(self.folder / "hot")
        self.others = {name: LocalTier(self.folder / name, name=name) for name in NAMES[1:]}

    def cellar(self, hot: Tier | None = None) -> CellarTier:
        openers: Mapping[str, Callable[[], Tier]] = {name: self._opener(name) for name in self.others}
        return CellarTier(hot or self.tier, openers)

    def _opener(self, name: str) -> Callable[[], Tier]:
        return lambda: self.others[name]

    def host(
        self,
        name: str = "a",
        tier: Tier | None = None,
        clock: Callable[[], float] | None = None,
        *,
        refresh: bool = True,
    ) -> Repository:
        return super().host(name, tier or self.cellar(), clock, refresh=refresh)

    def rules(self) -> Rules:
        return Rules(sites_of(PLACEMENT, dict.fromkeys(NAMES, Prices())), self.copies)

    def rebalance(self, host: Repository | None = None, *, dry_run: bool = False) -> RebalanceReport:
        return rebalance(host or self.host("mover"), self.rules(), at_once=1, dry_run=dry_run)

    def lying(self) -> dict[str, tuple[str, ...]]:
        """The tiers of every data pack, asked of the tiers themselves."""
        tiers = {"hot": self.tier, **self.others}
        found: dict[str, tuple[str, ...]] = {}
        for name, tier in tiers.items():
            for key, _ in tier.list("data/"):
                found[key] = (*found.get(key, ()), name)
        return found

    def daily(
        self, host: Repository, days: int, parent: RestorePoint | None = None, *, places: int = 6
    ) -> list[RestorePoint]:
        """A point a day, each of which replaces one piece of the first five; a sixth is of the first point for ever."""
        points = []
        for day in range(days):
            content = {place: 100 + place for place in range(places)} if parent is None else {day % 5: 1000 + day}
            parent = self.back_up(host, content, parent)
            points.append(parent)
            self.now += DAY
        return points


def make_local(folder: Path, name: str) -> LocalTier:
    (folder / name).mkdir()
    return LocalTier(folder / name, name=name)
