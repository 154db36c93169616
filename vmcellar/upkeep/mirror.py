"""Mirrors: all that is not packs of disk bytes lies on every tier, so that any one of them tells what there is.

A mirror is complete at any moment as far as its points go: what points need is copied before them and removed after
them. What hot no longer has is removed, but only after hot was listed without an error, and holds a repository.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.crypto.names import EPOCHS, KEYS
from vmcellar.errors import PermanentError
from vmcellar.repository.layout import CONFIG_KEY, EVIDENCE, INDEX, MARKS, META, PINS, POINTS
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.tiers.base import Tier
    from vmcellar.upkeep.carry import Carrier

IN_ORDER = (KEYS, EPOCHS, META, MARKS, INDEX, PINS, EVIDENCE, POINTS)
"""What is mirrored besides the config object, in the order in which it is copied: a mark before the index
parts that name what takes the place of its packs. Leases are of hot alone."""


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What was, or would be, copied to one tier and removed from it; `bytes` of what is copied."""

    tier: str
    copied: int
    bytes: int
    removed: int


class Mirror:
    """Brings mirrors up to date with hot as it was listed when this was made; one thread."""

    def __init__(self, hot: Tier, carrier: Carrier, check: Callable[[], None]) -> None:
        """List hot. `check` is called before each change, and raises to stop. PermanentError when hot holds nothing."""
        self._hot = hot
        self._carrier = carrier
        self._check = check
        listed = {prefix: dict(hot.list(prefix)) for prefix in reversed(IN_ORDER)}  # points first: the rest is there
        if not (listed[KEYS] and hot.exists(CONFIG_KEY)):
            raise PermanentError(
                f"{hot!r} holds no whole repository: no mirror is touched", hint="is a part of it not mounted?"
            )
        self._wanted = {CONFIG_KEY: hot.size(CONFIG_KEY)}
        for prefix in IN_ORDER:
            self._wanted.update(listed[prefix])

    def update(self, tier: Tier, *, dry_run: bool) -> Mirrored:
        """Bring one tier up to date. Raises what the tiers raise; the next call goes on."""
        there: dict[str, int] = {}
        for prefix in IN_ORDER:
            there.update(tier.list(prefix))
        if tier.exists(CONFIG_KEY):
            there[CONFIG_KEY] = tier.size(CONFIG_KEY)
        missing = [key for key, size in self._wanted.items() if there.get(key) != size]
        extra = [key for key in reversed(there) if key not in self._wanted]
        self._refuse_to_empty(tier, there, extra)
        if not dry_run:
            self._carrier.clear(tier)
            for key in missing:
                self._copy(key, tier, replace=key in there)
            for key in extra:
                self._remove(key, tier)
        return Mirrored(tier.name, len(missing), sum(self._wanted[key] for key in missing), len(extra))

    def _refuse_to_empty(self, tier: Tier, there: dict[str, int], extra: list[str]) -> None:
        points = {key for key in there if key.startswith(POINTS)}
        if points and points <= set(extra):
            raise PermanentError(
                f"{self._hot!r} has none of the {len(points)} restore points that {tier!r} mirrors: nothing is removed",
                hint="is a part of the hot tier not mounted, or lost? Nothing was changed",
            )

    def _copy(self, key: str, tier: Tier, *, replace: bool) -> None:
        self._check()
        try:
            if replace:
                tier.delete(key)
            self._carrier.copy(key, self._hot, tier)
        except NotFoundError:  # dropped from hot since it was listed
            if self._hot.exists(key):
                raise

    def _remove(self, key: str, tier: Tier) -> None:
        self._check()
        if not self._hot.exists(key):
            tier.delete(key)
