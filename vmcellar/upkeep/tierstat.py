"""How each tier stands: what lies there, how old it is, what it costs, what room is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.errors import VmcellarError
from vmcellar.policy.costs import month_cost
from vmcellar.upkeep.mirror import IN_ORDER
from vmcellar.upkeep.survey import Survey, by_tier, tiers_of

if TYPE_CHECKING:
    from vmcellar.config.prices import Prices
    from vmcellar.policy.placement import Pack
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.base import Tier


@dataclass(frozen=True, slots=True)
class TierSummary:
    """One tier. Sizes in bytes, ages in seconds; `cost_month` in the currency of its price table, of packs alone.

    A pack's age is that of the youngest point that needs it: `oldest` and `youngest` are of the packs that points need.
    `objects` are all that lie there, packs included; `metadata` are bytes of the others.
    `unneeded` are bytes that no point needs, or only pinned ones. `alone` are bytes of packs that no other tier has.
    `away` says why nothing could be told; the figures are 0 and None then.
    """

    name: str
    place: str
    packs: int = 0
    objects: int = 0
    bytes: int = 0
    metadata: int = 0
    alone: int = 0
    unneeded: int = 0
    youngest: float | None = None
    oldest: float | None = None
    cost_month: float = 0.0
    free: int | None = None
    away: str = ""


def summaries(repository: Repository, found: Survey, prices: Mapping[str, Prices], now: float) -> list[TierSummary]:
    """Every tier, hot first."""
    lying = dict(by_tier(found.packs))
    result = []
    for name, open_tier in tiers_of(repository).items():
        try:
            if name in found.away:
                result.append(TierSummary(name, "", away=found.away[name]))
            else:
                result.append(_summary(open_tier(), lying.get(name, []), prices[name], now))
        except VmcellarError as error:
            result.append(TierSummary(name, "", away=str(error)))
    return result


def _summary(tier: Tier, packs: list[Pack], prices: Prices, now: float) -> TierSummary:
    others = [size for prefix in IN_ORDER for _, size in tier.list(prefix)]
    ages = [now - pack.youngest for pack in packs if pack.youngest is not None]
    return TierSummary(
        name=tier.name,
        place=tier.describe(),
        packs=len(packs),
        objects=len(packs) + len(others),
        bytes=sum(pack.size for pack in packs),
        metadata=sum(others),
        alone=sum(pack.size for pack in packs if len(pack.tiers) == 1),
        unneeded=sum(pack.size for pack in packs if pack.youngest is None),
        youngest=min(ages, default=None),
        oldest=max(ages, default=None),
        cost_month=month_cost(prices, (pack.size for pack in packs)),
        free=tier.free_bytes(),
    )
