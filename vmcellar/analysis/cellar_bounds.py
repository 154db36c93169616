"""What the tiers of a configuration allow and cost, as advice on schedules takes it into account.

Backups write to hot. `bandwidth:` of hot is what passes to it and from it a second on this host: a run that is laid out
is taken to pass each byte twice, as what was written is read back. A tier behind it gets, by moves, no more in a day
than its `moves:` and `bandwidth:`, and those of hot, let through, each byte read on hot once, and on the tier written
and, unless it must be thawed, read back. `restores:` is what reads share; no schedule changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from math import inf, isnan
from typing import TYPE_CHECKING

from vmcellar.analysis.fill import DAY, fill_of
from vmcellar.analysis.history import tier_use
from vmcellar.analysis.judging import Kept, Need
from vmcellar.analysis.loads import DAY_MINUTES
from vmcellar.analysis.looks import fill_of_looks
from vmcellar.analysis.spending import HORIZON, RUN_BYTES, Store
from vmcellar.config.jobs import KeepByAge
from vmcellar.config.placement import REST
from vmcellar.policy.bandwidth import rate_at
from vmcellar.policy.localzone import local_zone
from vmcellar.policy.windows import seconds_left

if TYPE_CHECKING:
    import pandas as pd

    from vmcellar.catalog.catalog import Catalog
    from vmcellar.config.jobs import BackupJob
    from vmcellar.config.model import Config
    from vmcellar.config.tiers import TierSettings

HOT = "hot"
PASSES = 2
"""How often a byte that is written passes: what was placed is read back."""
FRESH_DAYS = 7.0
"""A look at a tier tells nothing of its room once it is older."""
SPANS = {"hourly": 1 / 24, "daily": 1.0, "weekly": 7.0, "monthly": 31.0, "yearly": 366.0}
"""Days that one point of each generation stands for."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The tiers, that which backups write to first; bytes a second that they may write to it by minute of a UTC day;
    and of which tiers the room is not known, and why.
    """

    stores: tuple[Store, ...] = ()
    writes: tuple[float, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cellar:
    """A configuration with what is known of how full its tiers are: rows of `history.tier_use`, None without any."""

    config: Config
    looks: pd.DataFrame | None = None

    @classmethod
    def of(cls, config: Config, catalog: Catalog | None) -> Cellar:
        """By what a catalog knows of them."""
        return cls(config, None if catalog is None else tier_use(catalog))

    def bounds(self, frame: pd.DataFrame, needs: Sequence[Need], now: float) -> Bounds:
        """What its tiers allow at `now` (seconds since the epoch), by the good rows of a history."""
        hot = self.config.tiers.hot
        if hot is None:
            return Bounds()
        zone = local_zone()
        others = self.config.other_tiers()
        unknown: list[str] = []
        stores = [Store(HOT, 0.0, hot.price_table)]
        stores += [
            Store(name, age, others[name].price_table, _moved(hot, others[name], now, zone))
            for name, age in _ages(self.config)
            if name in others
        ]
        rooms = [replace(store, room=self._room(frame, store, needs, now, unknown)) for store in stores]
        rates = _by_minute(lambda moment: _rate(hot, moment), now, zone)
        writes = tuple(rate / PASSES for rate in rates) if min(rates) < inf else ()
        return Bounds(tuple(rooms), writes, tuple(unknown))

    def _room(self, frame: pd.DataFrame, store: Store, needs: Sequence[Need], now: float, unknown: list[str]) -> float:
        """Bytes that a tier can hold in `HORIZON` days beyond its packs by then; inf where nobody can tell."""
        if self.looks is None:
            return inf
        looks = self.looks[self.looks["tier"] == store.name]
        if not len(looks) or now - looks["time"].max().timestamp() > FRESH_DAYS * DAY:
            unknown.append(f"how full {store.name} is (nobody looked in {FRESH_DAYS:g} days; `vmcellar capacity` does)")
            return inf
        last = looks.loc[looks["time"].idxmax()]
        used, free = float(last["bytes_used"]), float(last["bytes_free"])
        if isnan(free):  # it has no end
            return inf
        fill = fill_of(frame, store.name, used, now, self._leaves_after(store, needs))
        if fill.refusal:
            by_looks = fill_of_looks(self.looks, store.name, used, now)
            fill = replace(by_looks, refusal=by_looks.refusal and f"{fill.refusal}, and {by_looks.refusal}")
        if fill.refusal:
            unknown.append(f"when {store.name} is full ({fill.refusal})")
            return inf
        there = sum(need.kept.there for need in needs) * RUN_BYTES
        return used + free + there - float(fill.used[HORIZON])

    def _leaves_after(self, store: Store, needs: Sequence[Need]) -> int | None:
        """Days after which packs have gone from a tier: moved on, or dropped with the points that were kept longest."""
        longest = max((need.kept.days for need in needs), default=inf)
        ages = dict(_ages(self.config))
        later = [age for name, age in ages.items() if name != store.name and age > ages.get(store.name, 0.0)]
        days = min([longest, *later])
        return None if days == inf else max(round(days), 1)


def kept_by(job: BackupJob | None, runs: int, days: float) -> Kept:
    """How long a job keeps points of a VM with so many runs a day, of which the history knows so many days."""
    rules = None if job is None else job.retention
    if isinstance(rules, KeepByAge) and any(rules.model_dump().values()):
        spans = (getattr(rules, name) * span for name, span in SPANS.items())
        points = rules.last + sum(getattr(rules, name) for name in SPANS)
        kept = Kept(max(float(rules.last), *spans), points)
    else:
        kept = Kept(rules / DAY if isinstance(rules, int) else inf)
    there = runs * min(days, kept.days)
    return replace(kept, there=there if kept.points is None else min(there, float(kept.points)))


def _ages(config: Config) -> list[tuple[str, float]]:
    """The tiers that packs come to, each with the days after which they do."""
    if config.placement is None:
        return [(HOT, 0.0)]
    limits = config.placement.limits()
    begins = [0.0, *(float(until) / DAY for _, until in limits if until != REST)]
    ages = [(name, begin) for (name, _), begin in zip(limits, begins, strict=True)]
    return ages if ages[0][0] == HOT else [(HOT, 0.0), *ages]


def _rate(tier: TierSettings, moment: datetime) -> float:
    rate = None if tier.bandwidth is None else rate_at(tier.bandwidth, moment)
    return inf if rate is None else float(rate)


def _moved(hot: TierSettings, tier: TierSettings, now: float, zone: tzinfo) -> float:
    """Bytes a day that moves may bring a tier from hot."""

    def at(moment: datetime) -> float:
        if 0 in (seconds_left(hot.moves, moment), seconds_left(tier.moves, moment)):
            return 0.0
        return min(_rate(hot, moment), _rate(tier, moment) / (1 if tier.thaws else PASSES))

    return 60.0 * sum(_by_minute(at, now, zone))


def _by_minute(what: Callable[[datetime], float], now: float, zone: tzinfo) -> tuple[float, ...]:
    """For each minute of a UTC day, by the local clock of that day."""
    midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return tuple(what((midnight + timedelta(minutes=minute)).astimezone(zone)) for minute in range(DAY_MINUTES))
