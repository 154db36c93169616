"""One look at a thaw by somebody who comes back later: ask for what is archived, say when to look again.

Nothing is held between two looks, by anyone: what was asked for is in the records and at the tiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.config.prices import Prices, Speed
from vmcellar.restore.plan import RestorePlan
from vmcellar.restore.thaw import ThawRecord, ThawRecords, plan_thaw, request_thaw

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository

LOOK_SECONDS = 15 * 60
"""Between two looks at a thaw that should be done: archives say hours, and mean about."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found. `waiting` of the `packs` that are still needed cannot be read; look again in `again` seconds,
    None when all can.

    `requested` is the moment of the request that is waited for, seconds since 1970.
    """

    point: str
    vm: str
    packs: int
    waiting: int
    requested: float | None
    again: float | None


def look(
    repository: Repository,
    found: RestorePlan,
    wanted: tuple[Speed, int],
    prices: Mapping[str, Prices],
    records: ThawRecords,
) -> Look:
    """Ask for a thaw of what of `found` is archived, with speed and days of `wanted`, and say how far it has come.

    What was thawed and has gone back to sleep meanwhile is asked for again, which costs again. Raises what `plan_thaw`
    and `request_thaw` raise. Repeatable.
    """
    speed, days = wanted
    plan = plan_thaw(repository, found, prices, days)
    packs = len(found.keys)
    if not plan.waits:
        return Look(found.point, found.vm, packs, 0, None, None)
    record = records.of(found.point)
    if record is None or plan.in_state("archived"):
        record = request_thaw(repository, plan, speed, records)
    waiting = len(plan.in_state("archived", "thawing"))
    again = _again(record, repository.clock())
    return Look(found.point, found.vm, packs, waiting, record.requested, again)


def _again(record: ThawRecord, now: float) -> float:
    """Seconds until the next look: when the thaw should be done, else in a quarter of an hour."""
    return max(LOOK_SECONDS, (record.ready or now) - now)
