"""Where a pack should lie: pure decisions from its age, the rules, and what the tiers cost.

A pack's age is that of the youngest restore point that needs it, so what every new point still needs stays near. Rules
name the tier; it is left for a nearer one where going deeper would not pay: too small for the class's overhead, or
dropped by retention before the time is over that the class charges at least.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from vmcellar.config.placement import REST, Placement
from vmcellar.config.prices import Prices
from vmcellar.policy.costs import DAY, MONTH, early_cost, month_cost

HORIZON = 365 * DAY
"""For so long costs are compared at the most: nobody knows how long a pack without an end will be needed."""


@dataclass(frozen=True, slots=True)
class Site:
    """A tier as the rules see it: packs lie there until the age `until` (seconds); what it costs; whether what lies
    there must be thawed before it can be read.
    """

    name: str
    until: float
    prices: Prices
    thaws: bool = False


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack as it lies now: on which tiers, nearest first.

    `youngest` is the time of the youngest point that needs it; None when no point does, or only pinned ones. `needed`
    is until when one will, as far as retention tells; times in seconds since the epoch.
    """

    key: str
    size: int
    tiers: tuple[str, ...]
    youngest: float | None
    needed: float = inf


@dataclass(frozen=True, slots=True)
class Move:
    """Copy a pack from one of `tiers` to each of `copy`, then delete it from each of `drop`; either may be empty."""

    key: str
    size: int
    tiers: tuple[str, ...]
    copy: tuple[str, ...]
    drop: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Held:
    """A pack that should lie elsewhere and cannot be moved, and why."""

    key: str
    size: int
    tiers: tuple[str, ...]
    why: str


def sites_of(placement: Placement, prices: Mapping[str, Prices], archives: Collection[str] = ()) -> tuple[Site, ...]:
    """The tiers of a configuration in order, hot first. No age belongs to one that no rule names."""
    limits = {name: inf if until == REST else float(until) for name, until in placement.limits()}
    return tuple(
        Site(name, limits.get(name, 0.0), table, bool(table.retrieval) or name in archives)
        for name, table in prices.items()
    )


def decide(pack: Pack, sites: Sequence[Site], copies: int, now: float) -> Move | Held | None:
    """What is to be done with a pack; None when it lies where it should. The same question has the same answer.

    A copy on a tier with a minimum storage time stays when its pack is needed nearer again: it is paid for anyway, and
    spares the way back. A pack that no point needs is gc's; one that only pinned points need stays where it is.
    """
    if pack.youngest is None or not pack.tiers:
        return None
    by_name = {site.name: site for site in sites}
    age = now - pack.youngest
    first = _first(pack, sites, age, now)
    wanted = _with_copies(sites, first, copies)
    copy = tuple(name for name in wanted if name not in pack.tiers)
    nearest = sites.index(by_name[wanted[0]])
    drop = tuple(
        name
        for name in pack.tiers
        if name not in wanted and not (sites.index(by_name[name]) > nearest and by_name[name].prices.minimum_days)
    )
    if not copy and not drop:
        return None
    if copy and all(by_name[name].thaws for name in pack.tiers):
        return Held(pack.key, pack.size, pack.tiers, f"it must be thawed before it can go to {', '.join(copy)}")
    return Move(pack.key, pack.size, pack.tiers, copy, drop, _why(pack, sites[first], age, bool(drop)))


def _first(pack: Pack, sites: Sequence[Site], age: float, now: float) -> int:
    """The tier that the rules name, or the deepest one before it where the pack lies already or that pays."""
    names = [site.name for site in sites]
    here = min(names.index(name) for name in pack.tiers)
    named = next(i for i, site in enumerate(sites) if age < site.until)
    for i in range(named, here, -1):
        if names[i] in pack.tiers or _pays(pack, sites, here, i, age, now):
            return i
    return min(here, named)


def _pays(pack: Pack, sites: Sequence[Site], here: int, there: int, age: float, now: float) -> bool:
    """Whether going deeper costs less than staying, for as long as the pack will be needed."""
    old, new = sites[here].prices, sites[there].prices
    needed = max(0.0, min(pack.needed - now, HORIZON))
    if not (old.gb_month and new.gb_month):
        return needed >= new.minimum_days * DAY
    lain = age - max((site.until for site in sites[:here]), default=0.0)
    stay = month_cost(old, [pack.size]) * needed
    go = month_cost(new, [pack.size]) * max(needed, new.minimum_days * DAY)
    return go / MONTH + new.put_1000 / 1000 + early_cost(old, pack.size, lain) < stay / MONTH


def _with_copies(sites: Sequence[Site], first: int, copies: int) -> tuple[str, ...]:
    """The tier, the deeper ones behind it, then the nearer ones, as many as are asked for and there are."""
    order = [*range(first, len(sites)), *range(first - 1, -1, -1)]
    return tuple(sites[i].name for i in order[:copies])


def _why(pack: Pack, site: Site, age: float, drop: bool) -> str:
    if site.name in pack.tiers and not drop:
        return "a copy is missing"
    until = "" if site.until == inf else f", {site.name} until {site.until / DAY:.3g} d"
    return f"its youngest point is {age / DAY:.1f} d old{until}"
