"""From the configuration to the rules that a rebalance follows."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from vmcellar.errors import UsageError
from vmcellar.policy.placement import sites_of
from vmcellar.upkeep.limits import limits_of
from vmcellar.upkeep.prune import rules_of_jobs
from vmcellar.upkeep.rebalance import Rules

if TYPE_CHECKING:
    from vmcellar.config.model import Config
    from vmcellar.repository.points import RestorePoint
    from vmcellar.upkeep.survey import Needed


def rules_of(config: Config) -> Rules:
    """The rules of `placement:`; UsageError when there are none.

    Of a job whose retention is a time, points are needed until it is over; where generations decide, nobody can tell.
    """
    if config.placement is None:
        raise UsageError(
            f"{config.source or 'vmcellar.yaml'}: placement is missing: nothing says where packs should lie",
            hint="add such as `placement: {hot: 7d, warm: 30d, cold: rest}`",
        )
    tiers = {"hot": config.hot_tier(), **config.other_tiers()}
    prices = {name: tier.price_table for name, tier in tiers.items()}
    archives = [name for name, tier in tiers.items() if tier.thaws]
    placement = config.placement
    return Rules(
        sites_of(placement, prices, archives), placement.copies, kept_until(config), limits_of(config), placement.use
    )


def kept_until(config: Config) -> Needed:
    """Until when each point is kept, in seconds since the epoch: infinity where its job's retention is not a time."""
    choose = rules_of_jobs(config.backups)

    def kept(point: RestorePoint) -> float:
        retention = choose(point).rules
        return point.time + retention if isinstance(retention, int) else inf

    return kept
