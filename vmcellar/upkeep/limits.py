"""How fast each tier may be read and written by moves, and at what time of day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING

from vmcellar.policy.localzone import local_zone
from vmcellar.policy.placement import Held
from vmcellar.policy.tier_pace import TierPace, pace_of
from vmcellar.policy.windows import seconds_left

if TYPE_CHECKING:
    from vmcellar.config.model import Config
    from vmcellar.config.units import Window
    from vmcellar.policy.placement import Move
    from vmcellar.progress import CancelToken


@dataclass(frozen=True, slots=True)
class Limits:
    """The buckets that all processes of this host share, and by a tier's name its daily window in `zone`."""

    pace: TierPace = field(default_factory=TierPace)
    windows: Mapping[str, Window] = field(default_factory=dict)
    zone: tzinfo = UTC

    def take(self, tier: str, count: int, cancel: CancelToken) -> None:
        """Return when `count` bytes may pass from or to the tier; CancelledError when stopped meanwhile."""
        self.pace.take(tier, count, cancel)

    def closed(self, move: Move, now: float) -> Held | None:
        """What keeps a move from beginning now: it would read or write a tier outside of its window."""
        moment = datetime.fromtimestamp(now, self.zone)
        for name in dict.fromkeys((*move.tiers, *move.copy)):
            window = self.windows.get(name)
            if window is not None and not seconds_left(window, moment):
                return Held(move.key, move.size, move.tiers, f"{name} is moved to and from within {window} only")
        return None


def limits_of(config: Config) -> Limits:
    """Those of a configuration."""
    tiers = {"hot": config.hot_tier(), **config.other_tiers()}
    return Limits(
        pace_of(config.state / "tier-bandwidth", {name: tier.bandwidth for name, tier in tiers.items()}),
        {name: tier.moves for name, tier in tiers.items() if tier.moves is not None},
        local_zone(),
    )
