"""Locks of objects (S3 object lock, immutable files): what gc and moves must leave, and what must be locked anew.

While a point lives, all that it needs is locked for half of the tier's `keep` at least, if gc runs in that time. A
point itself is locked no longer than its job keeps it, where that is a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from math import inf
from operator import itemgetter
from typing import TYPE_CHECKING

from vmcellar.policy.placement import Held
from vmcellar.repository.layout import DATA, META, POINTS
from vmcellar.tiers.base import LOCKED, Locks
from vmcellar.upkeep.survey import tiers_of

if TYPE_CHECKING:
    from vmcellar.policy.placement import Move
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.base import Tier
    from vmcellar.tiers.cellar import CellarTier


@dataclass(frozen=True, slots=True)
class Locked:
    """What should have been deleted, and is locked until `until` (seconds since 1970) on the tier that is named."""

    key: str
    size: int
    tier: str
    until: float


def locks_of(tier: Tier) -> Locks | None:
    """The tier, if it locks what is written there."""
    return tier if isinstance(tier, Locks) and tier.lock_keep is not None else None


def held(repository: Repository, sizes: Mapping[str, int], now: float) -> dict[str, Locked]:
    """Which of these objects are locked now, on any tier; of several locks the longest."""
    found: dict[str, Locked] = {}
    for name, open_tier in tiers_of(repository).items() if sizes else ():
        locks = locks_of(open_tier())
        for key, until in locks.locked_until(sizes).items() if locks else ():
            if until > now and (key not in found or until > found[key].until):
                found[key] = Locked(key, sizes[key], name, until)
    return found


def extend(repository: Repository, packs: Iterable[str], kept: Mapping[str, float], check: Callable[[], None]) -> int:
    """Lock anew what points need and is locked for less than half of `keep`, on every tier; how many objects.

    `packs` are the keys of what points need, `kept` until when each point is kept, by its key. `check` is called before
    each tier is written to, and raises to stop. Asks for the lock of every object that points need: on S3 one request
    each.
    """
    needed = frozenset(packs)
    now = repository.clock()
    return sum(_extend(open_tier(), needed, kept, now, check) for open_tier in tiers_of(repository).values())


def _extend(tier: Tier, packs: frozenset[str], kept: Mapping[str, float], now: float, check: Callable[[], None]) -> int:
    locks = locks_of(tier)
    if locks is None or locks.lock_keep is None:
        return 0
    there = [key for prefix in LOCKED if prefix.endswith("/") for key, _ in tier.list(prefix)]
    live = [key for key in there if key in packs or not key.startswith((DATA, META))]
    due: defaultdict[float, list[str]] = defaultdict(list)
    for key, until in locks.locked_until(["config", *live]).items():
        last = kept.get(key, now) if key.startswith(POINTS) else inf
        if until < min(last, now + locks.lock_keep / 2):
            due[min(last, now + locks.lock_keep)].append(key)
    for when, keys in due.items():
        check()
        locks.lock_until(keys, when)
    return sum(map(len, due.values()))


def unlocked(moves: Iterable[Move], cellar: CellarTier, copies: int, now: float) -> tuple[list[Move], list[Held]]:
    """The moves that can be done now, and what waits for a lock on a copy that it would delete.

    Such a pack is not copied either, as it would be paid for twice; but for one that has too few copies.
    """
    moves = list(moves)
    until = _locks_on_drops(moves, cellar)
    free, held = [], []
    for move in moves:
        ends = [(name, until[name].get(move.key, 0.0)) for name in move.drop]
        name, end = max(ends, key=itemgetter(1), default=("", 0.0))
        if end <= now:
            free.append(move)
            continue
        held.append(Held(move.key, move.size, move.tiers, f"it is locked on {name} until {_day(end)}"))
        if move.copy and len(move.tiers) < copies:
            free.append(replace(move, drop=()))
    return free, held


def _locks_on_drops(moves: Iterable[Move], cellar: CellarTier) -> dict[str, Mapping[str, float]]:
    asked: dict[str, list[str]] = {name: [] for name in cellar.names}
    for move in moves:
        for name in move.drop:
            asked[name].append(move.key)
    found: dict[str, Mapping[str, float]] = {}
    for name, keys in asked.items():
        locks = locks_of(cellar.tier_named(name)) if keys else None
        found[name] = locks.locked_until(keys) if locks else {}
    return found


def _day(until: float) -> str:
    return "a legal hold is lifted" if until == inf else datetime.fromtimestamp(until).astimezone().date().isoformat()
