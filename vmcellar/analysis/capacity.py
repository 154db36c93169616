"""How full each tier is, what is added each day, and when it will be full."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vmcellar.analysis.fill import DAY, Fill, fill_of
from vmcellar.analysis.history import recent, tier_use
from vmcellar.analysis.looks import fill_of_looks
from vmcellar.analysis.quality import quarantine
from vmcellar.catalog import models
from vmcellar.catalog.catalog import Catalog
from vmcellar.policy.costs import month_cost, offers
from vmcellar.repository.layout import PACK_BYTES
from vmcellar.upkeep.survey import lying
from vmcellar.upkeep.tierstat import summaries

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from vmcellar.config.model import Config
    from vmcellar.config.prices import Prices
    from vmcellar.repository.repository import Repository
    from vmcellar.upkeep.tierstat import TierSummary

COST_DAYS = (30, 365)
THAWED_DAYS = 3
"""How long what was thawed stays readable, for what a thaw costs."""
LEVEL = 80
"""Per cent of cases in which the tier is full between the earliest and the latest day that are named."""


@dataclass(frozen=True, slots=True)
class TierUse:
    """A tier now: bytes of packs on it, and what it has left (None: it has no end that it knows).

    `cost_month` is what that costs a month by the tier's price table, in its currency.
    """

    tier: str
    used: int
    free: int | None
    cost_month: float = 0.0


@dataclass(frozen=True, slots=True)
class TierCost:
    """What a tier costs a month `days` from now, with its 80 % interval, and what it would cost to thaw all of it once,
    at the cheapest speed (None: it reads at once); in the currency of its price table.
    """

    days: int
    month: float
    low: float
    high: float
    thaw: float | None


@dataclass(frozen=True, slots=True)
class TierCapacity:
    """A tier now and to come. `full` and its bounds are None when that is over a year away, or there is no end.

    `per_day` is None, with a `reason`, when the history is too short. `costs` are those of today, in 30 days and in a
    year; none without a price.
    """

    tier: str
    used: int
    free: int | None
    per_day: float | None
    full: datetime | None
    earliest: datetime | None
    latest: datetime | None
    reason: str
    costs: tuple[TierCost, ...] = ()


@dataclass(frozen=True, slots=True)
class DaysToFull:
    """Days from now until a tier is full, at the earliest and the latest by the 80 % interval; None with a `reason`,
    and `known` is False when there is no forecast.
    """

    known: bool
    days: float | None
    earliest: float | None
    latest: float | None
    reason: str


def days_to_full(config: Config, repository: Repository, standing: Iterable[TierSummary]) -> dict[str, DaysToFull]:
    """Of each tier that answers, by its name, as `capacity` tells it. Raises what the catalog raises."""
    now = repository.clock()
    catalog = Catalog.of(config, repository.id)
    frame = quarantine(recent(catalog, now), now)[0]
    tiers = [TierUse(one.name, one.bytes + one.metadata, one.free) for one in standing if not one.away]
    return {one.tier: _days_to_full(one, now) for one in capacity(frame, tiers, now, looks=tier_use(catalog))}


def _days_to_full(found: TierCapacity, now: float) -> DaysToFull:
    days, earliest, latest = (
        None if moment is None else (moment.timestamp() - now) / DAY
        for moment in (found.full, found.earliest, found.latest)
    )
    return DaysToFull(found.per_day is not None, days, earliest, latest, found.reason)


def tiers_now(repository: Repository, config: Config, now: float) -> list[TierUse]:
    """What lies on each tier that answers. Lists all packs of all tiers and reads none, so that no damage keeps it from
    telling; raises what listing hot raises.
    """
    found = summaries(repository, lying(repository), config.price_tables(), now)
    return [TierUse(one.name, one.bytes + one.metadata, one.free, one.cost_month) for one in found if not one.away]


def use_rows(repository: str, tiers: Iterable[TierUse], now: float) -> list[models.TierUse]:
    """The same as rows of the catalog."""
    return [
        models.TierUse(repository=repository, tier=tier.tier, time=now, used=tier.used, free=tier.free)
        for tier in tiers
    ]


def capacity(
    frame: pd.DataFrame,
    tiers: Sequence[TierUse],
    now: float,
    kept_days: int | None = None,
    prices: Mapping[str, Prices] | None = None,
    looks: pd.DataFrame | None = None,
) -> list[TierCapacity]:
    """Each tier's outlook by a good history (see `quality.quarantine`) and its use at `now` (seconds since 1970).

    A tier of which that history says too little is judged by earlier `looks` at it, rows of `tier_use`.
    """
    found = []
    for tier in tiers:
        fill = fill_of(frame, tier.tier, tier.used, now, kept_days)
        if fill.refusal and looks is not None:
            by_looks = fill_of_looks(looks, tier.tier, tier.used, now)
            refusal = f"{fill.refusal}, and {by_looks.refusal}"
            fill = by_looks if not by_looks.refusal else replace(fill, refusal=refusal)
        table = (prices or {}).get(tier.tier)
        found.append(replace(_outlook(tier, fill), costs=_costs(tier, fill, table) if table else ()))
    return found


def _costs(tier: TierUse, fill: Fill, prices: Prices) -> tuple[TierCost, ...]:
    """Of whole packs. Without a forecast only today's; none where the tier costs nothing."""
    if not (prices.gb_month or prices.retrieval):
        return ()
    used = {0: (tier.used, tier.used, tier.used)}
    if not fill.refusal:
        used |= {days: (fill.used[days], fill.low[LEVEL][days], fill.high[LEVEL][days]) for days in COST_DAYS}
    costs = []
    for days, sizes in used.items():
        month, low, high = (month_cost(prices, [PACK_BYTES]) * _packs(size) for size in sizes)
        costs.append(TierCost(days, month, low, high, _thaw(prices, sizes[0])))
    return tuple(costs)


def _packs(size: float) -> int:
    """Packs of whole size; of an interval's end that knows no bounds, as many as any tier could hold."""
    return max(round(min(size, 2.0**63) / PACK_BYTES), int(size > 0))


def _thaw(prices: Prices, size: float) -> float | None:
    per_pack = [offer.total for offer in offers(prices, [PACK_BYTES], THAWED_DAYS)] if prices.retrieval else []
    return min(per_pack) * _packs(size) if per_pack else None


def _outlook(tier: TierUse, fill: Fill) -> TierCapacity:
    if fill.refusal:
        return TierCapacity(tier.tier, tier.used, tier.free, None, None, None, None, fill.refusal)
    if tier.free is None:
        return TierCapacity(tier.tier, tier.used, None, fill.per_day, None, None, None, "the tier knows no end")
    room = tier.used + tier.free
    earliest, latest = fill.days_between(room, LEVEL)
    days = (fill.days_to(room), earliest, latest)
    full, first, last = (_day(fill.now, count) for count in days)
    reason = "" if full else "not within a year"
    return TierCapacity(tier.tier, tier.used, tier.free, fill.per_day, full, first, last, reason)


def _day(now: float, days: float | None) -> datetime | None:
    return None if days is None else datetime.fromtimestamp(now, UTC) + timedelta(days=days)
