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
from vmcellar.repository.layout import DATA, KIND_DATA, META, POINTS
from vmcellar.tiers.cellar import CellarTier
from vmcellar.upkeep.pins import pinned
from vmcellar.upkeep.reach import Live, Reach

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.base import Tier

Needed = Callable[["RestorePoint"], float]
"""Until when a point is kept (seconds since the epoch); infinity where nothing says."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """A pack that young points need: `live` is what any point needs of it; `young`, by ordinal, what young ones do."""

    live: Live
    young: bytes
    young_bytes: int

    def is_young(self, ordinal: int) -> bool:
        """Whether a young point needs this object."""
        return ordinal < len(self.young) and bool(self.young[ordinal])


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found. `packs` of disk bytes by key; `lost` are keys of packs that points need: of disk bytes which no
    tier has, of metadata which hot has not; `mixed` are those packs that points younger than was asked for need.

    `away` names each tier that could not be listed, with the reason: what lies there alone is neither in `packs` nor in
    `lost` then. `unread` are the ids of points that could not be read: what they need is not known.
    """

    packs: tuple[Pack, ...]
    lost: tuple[str, ...]
    points: int
    away: Mapping[str, str]
    mixed: tuple[Mixed, ...] = ()
    unread: frozenset[str] = frozenset()


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
    young_since: float = inf,
    used: Mapping[str, float] | None = None,
    strict: bool = False,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> Survey:
    """Look at everything. With `strict`, a tier that cannot be listed is an error. Points are young if made since
    `young_since`. A point of `used` counts as made when it was last used.

    IntegrityError when a map that points need is missing or damaged. Points that cannot be read are left out with a
    warning: what only they need is not moved.
    """
    cancel = cancel or CancelToken()
    there, away = _listed(repository, strict=strict, cancel=cancel)
    metadata = {key for key, _ in repository.tier.list(META)}
    repository.index.refresh()
    every = {key.removeprefix(POINTS) for key, _ in repository.tier.list(POINTS)}
    points = repository.readable_points()
    walk = _Walk(repository, needed, young_since, used or {}, progress, cancel)
    seen = walk.run(points)
    packs = (Pack(key, size, tuple(tiers), *seen.get(key, (None, inf))) for key, (size, tiers) in sorted(there.items()))
    missing = (walk.metadata - metadata) | (set() if away else seen.keys() - there.keys())
    lost = tuple(key for key in sorted(missing) if not repository.tier.exists(key))
    unread = frozenset(every - {point.id for point in points})
    return Survey(tuple(packs), lost, len(points), away, walk.mixed(), unread)


def lying(repository: Repository) -> Survey:
    """What lies on each tier that answers, and nothing of what needs it: no map is read, so all packs are of no age."""
    found, away = _listed(repository, strict=False, cancel=CancelToken())
    packs = (Pack(key, size, tuple(tiers), None, inf) for key, (size, tiers) in sorted(found.items()))
    return Survey(tuple(packs), (), 0, away)


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


class _Walk:
    """One walk over all points, from the newest to the oldest, pinned ones last."""

    def __init__(
        self,
        repository: Repository,
        needed: Needed,
        young_since: float,
        used: Mapping[str, float],
        progress: ProgressSink,
        cancel: CancelToken,
    ) -> None:
        self._marked = frozenset[bytes]().union(*repository.index.marks().values())
        self._reach = Reach(repository, self._marked, progress, cancel)
        self._pins = pinned(repository)
        self._needed = needed
        self._young_since = young_since
        self._used = used
        self._young: dict[bytes, tuple[bytes, int]] | None = None
        self.metadata: set[str] = set()
        """Keys of the metadata packs that points need."""

    def run(self, points: list[RestorePoint]) -> dict[str, tuple[float | None, float]]:
        """For each data pack that points need: when the youngest not pinned was made or used, and until when that is
        kept.
        """
        seen: dict[str, tuple[float | None, float]] = {}
        born = {point.id: max(point.time, self._used.get(point.id, 0.0)) for point in points}
        pinned_last = sorted(points, key=lambda point: (point.id not in self._pins, born[point.id]), reverse=True)
        for point in pinned_last:
            is_pinned = point.id in self._pins
            if self._young is None and (is_pinned or born[point.id] < self._young_since):
                self._young = {pack: (bytes(live.ordinals), live.bytes) for pack, live in self._reach.live.items()}
            facts = (None, inf) if is_pinned else (born[point.id], self._needed(point))
            for pack in self._reach.add(point):
                if pack.kind == KIND_DATA:
                    seen[pack.key] = facts
                else:
                    self.metadata.add(pack.key)
        return seen

    def mixed(self) -> tuple[Mixed, ...]:
        """The data packs that young points need and no mark names."""
        live = self._reach.live
        return tuple(
            Mixed(live[pack], ordinals, size)
            for pack, (ordinals, size) in sorted((self._young or {}).items())
            if live[pack].pack.kind == KIND_DATA and pack not in self._marked
        )


def by_tier(packs: tuple[Pack, ...]) -> Iterator[tuple[str, list[Pack]]]:
    """The packs of each tier that has any; one with several copies is in several."""
    found: defaultdict[str, list[Pack]] = defaultdict(list)
    for pack in packs:
        for name in pack.tiers:
            found[name].append(pack)
    yield from found.items()
