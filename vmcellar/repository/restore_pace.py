"""How fast restores may read each tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmcellar.policy.tier_pace import TierPace, pace_of

__all__ = ["TierPace", "restore_pace"]

if TYPE_CHECKING:
    from vmcellar.repository.repository import Settings


def restore_pace(config: Settings) -> TierPace:
    """The limits of a configuration, shared by the processes of this host that have the same state directory."""
    tiers = {"hot": config.hot_tier(), **config.other_tiers()}
    return pace_of(config.state / "restore-bandwidth", {name: tier.restores for name, tier in tiers.items()})
