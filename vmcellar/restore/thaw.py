"""What of a point must be thawed before it can be restored, what that costs, and the request for it.

The truth is what the tiers say of each pack. The record of a request is kept besides, in the state directory, so that
`vmcellar thaw --status` and a flow that runs later know what was asked for; it is written before the first request, so
that a kill in between leaves at most a record of what the same command then goes on with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vmcellar.config.prices import SPEEDS, Prices, Speed
from vmcellar.errors import PermanentError, UsageError
from vmcellar.policy.costs import DAY, Offer, offers
from vmcellar.restore.plan import RestorePlan, make_plan
from vmcellar.tiers.base import Archive, ArchivedError, ArchiveState, NotFoundError
from vmcellar.tiers.local import LocalTier, make_directory

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

HOUR = 3600
DAYS = 3
"""How long thawed packs stay readable unless told otherwise."""
_REQUESTS = "requests/"
KEPT_AFTER = 7 * DAY
"""How long a record stays after its thaw is over."""


@dataclass(frozen=True, slots=True)
class ThawPlan:
    """The packs of a restore that lie in archives or did not; `offers` has each speed's cost, the cheapest first.

    A speed is offered when every tier that must thaw something has it and its price is known.
    """

    point: str
    vm: str
    days: int
    packs: tuple[ArchiveState, ...]
    offers: tuple[Offer, ...]

    def in_state(self, *states: str) -> list[ArchiveState]:
        """The packs in one of these states."""
        return [pack for pack in self.packs if pack.state in states]

    @property
    def waits(self) -> bool:
        """Whether anything must be thawed, or its thaw waited for, before a restore."""
        return any(not pack.reads for pack in self.packs)

    def offer(self, speed: Speed) -> Offer | None:
        """What `speed` costs, None when that is not known; UsageError when the archive does not have it."""
        found = next((offer for offer in self.offers if offer.speed == speed), None)
        if found is None and self.offers:
            raise UsageError(
                f"{self.vm}: point {self.point} cannot be thawed at speed {speed}",
                hint=f"its archive offers {', '.join(offer.speed for offer in self.offers)}",
            )
        return found


@dataclass(frozen=True, slots=True)
class ThawRecord:
    """One request: what was asked for, when (seconds since 1970), and by when it was to be readable; None: unknown."""

    point: str
    vm: str
    speed: Speed
    days: int
    requested: float
    ready: float | None
    cost: float | None
    keys: tuple[str, ...]
    bytes: int

    @property
    def name(self) -> str:
        """The record's key: one per point and moment."""
        return f"{_REQUESTS}{self.point}.{round(self.requested * 1000):015d}"


@dataclass(frozen=True, slots=True)
class ThawStatus:
    """How far a request has come: packs by state. `until`: when the first thawed pack goes back to sleep."""

    record: ThawRecord
    state: Literal["thawing", "ready", "incomplete", "gone"]
    readable: int
    thawing: int
    archived: int
    until: float | None


def plan_thaw(repository: Repository, plan: RestorePlan, prices: Mapping[str, Prices], days: int) -> ThawPlan:
    """Ask the tiers for the state of every pack of `plan`, and price the thaw of those that need one.

    Raises what the tiers raise. `prices` are by the tiers' names.
    """
    packs = tuple(_states(repository, plan.keys).values())
    return ThawPlan(plan.point, plan.vm, days, packs, _offers(packs, prices, days))


def asleep(repository: Repository, keys: Sequence[str]) -> set[str]:
    """Those of the packs that cannot be read now, until they are thawed."""
    return {key for key, state in _states(repository, keys).items() if not state.reads}


def refuse_archived(repository: Repository, plan: RestorePlan) -> None:
    """ArchivedError when a pack that the restore reads cannot be read now; names the command that thaws it."""
    waiting = [state for state in _states(repository, plan.keys).values() if not state.reads]
    if not waiting:
        return
    thawing = sum(state.state == "thawing" for state in waiting)
    first = f"{len(waiting)} of {plan.packs} packs lie in an archive class, the first {waiting[0].key}"
    raise ArchivedError(
        f"{plan.vm}: point {plan.point} must be thawed first: {first}; {thawing} of them are being thawed",
        hint=f"type `vmcellar thaw {plan.point}`, which says first what it costs; nothing was written",
    )


def refuse_asleep(repository: Repository, point: RestorePoint, targets: Sequence[str]) -> None:
    """ArchivedError when a pack of these disks must be thawed first; damage is left to whoever reads. Looks at nothing
    where no tier has archive classes.
    """
    if isinstance(repository.tier, Archive):
        refuse_archived(repository, make_plan(repository, point, targets, best_effort=True))


def request_thaw(
    repository: Repository, plan: ThawPlan, speed: Speed, records: ThawRecords, now: float | None = None
) -> ThawRecord:
    """Record the request, then ask for everything of `plan` that is not readable for good. Costs money.

    Returns when all was asked for. Repeatable: what is being thawed goes on. UsageError for a speed that the archive
    does not have; raises what the tier raises, and then the same call goes on where it stopped.
    """
    offer = plan.offer(speed)
    asked = repository.clock() if now is None else now
    packs = plan.in_state("archived", "thawing", "thawed")
    record = ThawRecord(
        point=plan.point,
        vm=plan.vm,
        speed=speed,
        days=plan.days,
        requested=asked,
        ready=asked + offer.hours * HOUR if offer else None,
        cost=offer.total if offer else None,
        keys=tuple(pack.key for pack in packs),
        bytes=sum(pack.size for pack in packs),
    )
    records.save(record)
    if packs:
        _archive(repository).thaw(record.keys, plan.days, speed)
    return record


def thaw_status(repository: Repository, record: ThawRecord) -> ThawStatus:
    """How far the request has come, as the tiers tell now."""
    try:
        packs = _states(repository, record.keys).values()
    except NotFoundError:  # its point was dropped, and the packs with it
        return ThawStatus(record, "gone", 0, 0, 0, None)
    counts = {name: sum(pack.state == name for pack in packs) for name in ("thawing", "archived")}
    ends = [pack.until for pack in packs if pack.until is not None]
    state: Literal["thawing", "ready", "incomplete"] = "incomplete" if counts["archived"] else "ready"
    if counts["thawing"] and not counts["archived"]:
        state = "thawing"
    readable = len(packs) - counts["thawing"] - counts["archived"]
    return ThawStatus(record, state, readable, counts["thawing"], counts["archived"], min(ends, default=None))


class ThawRecords:
    """The records of this host, one object each; never changed, only added and removed."""

    def __init__(self, state: Path, repository: Repository) -> None:
        self._repository = repository
        self._folder = state / "thaws" / repository.id.hex()

    def _store(self) -> LocalTier:
        make_directory(self._folder)
        return LocalTier(self._folder, name="thaws")

    def save(self, record: ThawRecord) -> None:
        """Keep the record, durably; earlier ones of its point that asked for nothing else go, and what is long over."""
        store, others = self._store(), self.all()
        if not store.exists(record.name):
            store.put(record.name, json.dumps(asdict(record)).encode())
        for other in (other for other in others if other.name != record.name):
            replaced = other.point == record.point and set(other.keys) <= set(record.keys)
            if replaced or _over(other) + KEPT_AFTER < record.requested:
                store.delete(other.name)

    def all(self) -> list[ThawRecord]:
        """Every record, oldest first."""
        if not self._folder.exists():
            return []
        store = self._store()
        return sorted(
            (_decode(key, store.get(key)) for key, _ in store.list(_REQUESTS)), key=lambda found: found.requested
        )

    def of(self, point: str) -> ThawRecord | None:
        """The newest record of a point."""
        return next((record for record in reversed(self.all()) if record.point == point), None)


def _decode(key: str, data: bytes) -> ThawRecord:
    try:
        fields = json.loads(data)
        return ThawRecord(**{**fields, "keys": tuple(fields["keys"])})
    except (ValueError, TypeError, KeyError) as error:
        raise PermanentError(
            f"the record of a thaw {key} cannot be read: {error}", hint="remove the file below thaws/ in state:"
        ) from error


def _over(record: ThawRecord) -> float:
    """When the thaw was to be over, at the latest."""
    return (record.ready or record.requested + 48 * HOUR) + (record.days + 1) * DAY


def _archive(repository: Repository) -> Archive:
    if not isinstance(repository.tier, Archive):
        raise PermanentError(f"{repository.tier!r} has nothing to thaw", hint="restore at once")
    return repository.tier


def _states(repository: Repository, keys: Sequence[str]) -> Mapping[str, ArchiveState]:
    """The state of each pack; none of a tier whose objects are always readable."""
    return repository.tier.thaw_state(keys) if isinstance(repository.tier, Archive) else {}


def _offers(packs: Sequence[ArchiveState], prices: Mapping[str, Prices], days: int) -> tuple[Offer, ...]:
    """The sum over the tiers, of the speeds that all of those that must thaw have."""
    each = []
    for tier in dict.fromkeys(pack.tier for pack in packs if not pack.reads):
        here = [pack for pack in packs if pack.tier == tier]
        frozen = [pack.size for pack in here if pack.state == "archived"]
        found = offers(prices.get(tier, Prices()), [pack.size for pack in here], days, frozen=frozen)
        each.append({offer.speed: offer for offer in found})
    common = [speed for speed in SPEEDS if each and all(speed in one for one in each)]
    return tuple(reduce(_both, (one[speed] for one in each)) for speed in common)


def _both(one: Offer, other: Offer) -> Offer:
    return Offer(
        speed=one.speed,
        hours=max(one.hours, other.hours),
        retrieval=one.retrieval + other.retrieval,
        copies=one.copies + other.copies,
        transfer=one.transfer + other.transfer,
    )
