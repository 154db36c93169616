"""What lies where, and how old it is: the tiers listed, and all points walked from the newest to the oldest.

A pack is as old as the youngest point that needs it. As points share what did not change, and what they share is walked
once, the first point that reaches a pack is that one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from vmcellar.errors import UsageError, VmcellarError
from vmcellar.policy.placement import Pack
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository.layout import DATA, KIND_DATA
from vmcellar.tiers.cellar import CellarTier
from vmcellar.upkeep.pins import pinned
from vmcellar.upkeep.reach import Reach

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.base import Tier

Needed = Callable[["RestorePoint"], float]
"""Until when a point is kept (seconds since the epoch); infinity where nothing says."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found. `packs` by key; `lost` are keys that points need and no tier has.

    `away` names each tier that could not be listed, with the reason: what lies there alone is neither in `packs` nor in
    `lost` then.
    """

    packs: tuple[Pack, ...]
    lost: tuple[str, ...]
    points: int
    away: Mapping[str, str]


def for_ever(_: RestorePoint) -> float:
    """Nothing says until when a point is kept."""
    return inf


def tiers_of(repository: Repository) -> Mapping[str, Callable[[], Tier]]:
    """Every tier of a repository by name, hot first, with what opens it."""
    tier = repository.tier
    if isinstance(tier, CellarTier):
        return {name: _opener(tier, name) for name in tier.names}
    return {tier.name: lambda: tier}


def cellar_of(repository: Repository) -> CellarTier:
    """The tiers of a repository that has more than one; UsageError for others."""
    if not isinstance(repository.tier, CellarTier):
        raise UsageError("the configuration has one tier only", hint="add `warm:` or `cold:` under tiers:")
    return repository.tier


def _opener(cellar: CellarTier, name: str) -> Callable[[], Tier]:
    return lambda: cellar.tier_named(name)


def survey(
    repository: Repository,
    *,
    needed: Needed = for_ever,
    strict: bool = False,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> Survey:
    """Look at everything. With `strict`, a tier that cannot be listed is an error.

    IntegrityError when a map that points need is missing or damaged. Points that cannot be read are left out with a
    warning: what only they need is not moved.
    """
    cancel = cancel or CancelToken()
    lying, away = _listed(repository, strict=strict, cancel=cancel)
    repository.index.refresh()
    points = repository.readable_points()
    seen = _walked(repository, points, needed, progress, cancel)
    packs = (Pack(key, size, tuple(tiers), *seen.get(key, (None, inf))) for key, (size, tiers) in sorted(lying.items()))
    lost = () if away else tuple(sorted(seen.keys() - lying.keys()))
    return Survey(tuple(packs), lost, len(points), away)


def _listed(
    repository: Repository, *, strict: bool, cancel: CancelToken
) -> tuple[dict[str, tuple[int, list[str]]], dict[str, str]]:
    """Size and tiers of every data pack, by key; and the tiers that did not answer."""
    found: dict[str, tuple[int, list[str]]] = {}
    away: dict[str, str] = {}
    for name, open_tier in tiers_of(repository).items():
        try:
            listed = list(open_tier().list(DATA))
        except VmcellarError as error:
            if strict:
                raise
            away[name] = str(error)
            continue
        for key, size in listed:
            cancel.check()
            found.setdefault(key, (size, []))[1].append(name)
    return found, away


def _walked(
    repository: Repository,
    points: list[RestorePoint],
    needed: Needed,
    progress: ProgressSink,
    cancel: CancelToken,
) -> dict[str, tuple[float | None, float]]:
    """For each data pack that points need: the time of the youngest that is not pinned, and until when it is kept."""
    marked = frozenset[bytes]().union(*repository.index.marks().values())
    reach = Reach(repository, marked, progress, cancel)
    pins = pinned(repository)
    seen: dict[str, tuple[float | None, float]] = {}
    for point in sorted(points, key=lambda point: (point.id not in pins, point.time), reverse=True):
        facts = (None, inf) if point.id in pins else (point.time, needed(point))
        for pack in reach.add(point):
            if pack.kind == KIND_DATA:
                seen[pack.key] = facts
    return seen


def by_tier(packs: tuple[Pack, ...]) -> Iterator[tuple[str, list[Pack]]]:
    """The packs of each tier that has any; one with several copies is in several."""
    found: defaultdict[str, list[Pack]] = defaultdict(list)
    for pack in packs:
        for name in pack.tiers:
            found[name].append(pack)
    yield from found.items()
