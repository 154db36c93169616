"""How fast each tier may be used for one purpose, and at what time of day: buckets that a host's processes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.policy.bandwidth import Throttle, rate_at
from vmcellar.policy.localzone import local_zone

if TYPE_CHECKING:
    from vmcellar.config.bandwidth import Bandwidth
    from vmcellar.progress import CancelToken


@dataclass(frozen=True, slots=True)
class TierPace:
    """The bucket of each tier that has a limit, by its name. Any thread."""

    throttles: Mapping[str, Throttle] = field(default_factory=dict)

    def take(self, tier: str, count: int, cancel: CancelToken) -> None:
        """Return when `count` bytes may pass; CancelledError when stopped meanwhile."""
        throttle = self.throttles.get(tier)
        if throttle is not None:
            throttle.take(count, cancel)


def pace_of(folder: Path, bandwidths: Mapping[str, Bandwidth | None]) -> TierPace:
    """The buckets of those tiers that have a bandwidth; their files lie in `folder`, which is one purpose's own."""
    limited = {name: bandwidth for name, bandwidth in bandwidths.items() if bandwidth is not None}
    return TierPace({name: Throttle(folder / name, _rate(bandwidth)) for name, bandwidth in limited.items()})


def _rate(bandwidth: Bandwidth) -> Callable[[], int | None]:
    return partial(_rate_now, bandwidth)


def _rate_now(bandwidth: Bandwidth) -> int | None:
    return rate_at(bandwidth, datetime.now(UTC).astimezone(local_zone()))
