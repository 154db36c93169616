"""Notes of when points were restored, for placement by use (docs/repository-format.md, section 2).

A note is a name without content: one listing tells all. It is a hint about cost and speed alone, so it is not signed,
and a restore never fails for want of it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmcellar.errors import VmcellarError
from vmcellar.repository.layout import USES
from vmcellar.tiers.base import ExistsError, NotFoundError
from vmcellar.tiers.cellar import CellarTier

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.base import Tier

_log = logging.getLogger(__name__)
_NAME = re.compile(r"(?P<point>\d{8}T\d{6}Z-[0-9a-f]{8})-(?P<stamp>\d{8}T\d{6}Z)")
_STAMP = "%Y%m%dT%H%M%SZ"


def note(repository: Repository, point: str) -> None:
    """Note that the point is restored now. Does nothing where there is one tier; never raises."""
    if not isinstance(repository.tier, CellarTier):
        return
    when = datetime.fromtimestamp(repository.clock(), UTC)
    try:
        with suppress(ExistsError):
            repository.tier.put(f"{USES}{point}-{when.strftime(_STAMP)}", b"")
    except VmcellarError as error:
        _log.warning("that %s was restored is not noted for placement: %s", point, error.message)


def last(tier: Tier) -> dict[str, float]:
    """When each point was last restored (seconds since 1970), of those that were; a name that is none is left out."""
    found: dict[str, float] = {}
    for _, point, when in _notes(tier):
        found[point] = max(when, found.get(point, 0.0))
    return found


def clear(tier: Tier, points: Collection[str]) -> None:
    """Remove the notes of points other than these, and of each point all but the newest."""
    newest = last(tier)
    for key, point, when in _notes(tier):
        if point not in points or when < newest[point]:
            with suppress(NotFoundError):
                tier.delete(key)


def _notes(tier: Tier) -> list[tuple[str, str, float]]:
    notes = []
    for key, _ in tier.list(USES):
        match = _NAME.fullmatch(key.removeprefix(USES))
        with suppress(ValueError):
            if match is not None:
                when = datetime.strptime(match["stamp"], _STAMP).replace(tzinfo=UTC)
                notes.append((key, match["point"], when.timestamp()))
    return notes
