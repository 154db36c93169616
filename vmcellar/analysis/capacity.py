"""How full each tier is, what is added each day, and when it will be full."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vmcellar.analysis.fill import Fill, fill_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

LEVEL = 80
"""Per cent of cases in which the tier is full between the earliest and the latest day that are named."""


@dataclass(frozen=True, slots=True)
class TierUse:
    """A tier now: bytes of packs on it, and what it has left (None: it has no end that it knows)."""

    tier: str
    used: int
    free: int | None


@dataclass(frozen=True, slots=True)
class TierCapacity:
    """A tier now and to come. `full` and its bounds are None when that is over a year away, or there is no end.

    `per_day` is None, with a `reason`, when the history is too short.
    """

    tier: str
    used: int
    free: int | None
    per_day: float | None
    full: datetime | None
    earliest: datetime | None
    latest: datetime | None
    reason: str


def capacity(
    frame: pd.DataFrame, tiers: Sequence[TierUse], now: float, kept_days: int | None = None
) -> list[TierCapacity]:
    """Each tier's outlook by a good history (see `quality.quarantine`) and its use at `now` (seconds since 1970)."""
    return [_outlook(tier, fill_of(frame, tier.tier, tier.used, now, kept_days)) for tier in tiers]


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
