"""What the repository itself tells at a look at the fleet: the room on its tiers, tiers that do not answer, damage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmcellar.catalog.conditions import Condition, tier_conditions
from vmcellar.errors import VmcellarError
from vmcellar.upkeep.survey import tiers_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmcellar.catalog.notices import Told
    from vmcellar.repository.repository import Repository

HOT = "hot"
DAMAGED = "repository damaged"
TRIED_MOST = 32


@dataclass(slots=True)
class Rooms:
    """Bytes that each tier has left (None: no end that it knows), why others do not answer, and how many stored objects
    are `lost`: they failed a check, and no better copy is known. `lost` is None where nobody could look.
    """

    free: dict[str, int | None] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)
    lost: int | None = None

    def conditions(self, held: Mapping[str, Told]) -> list[Condition]:
        """What is wrong; what held at the look before and cannot be looked at now holds on."""
        found = tier_conditions(self.free, self.away)
        if self.lost:
            text = (
                f"{self.lost} stored objects failed a check, and no better copy is known: points that need them do not "
                "come back whole; `vmcellar verify --all --deep` names them, with `--repair --from TIER` it mends what "
                "a copy has"
            )
            found.append(Condition(DAMAGED, "critical", text))
        known = {each.key for each in found}
        return [*found, *(each for each in self._unseen(held) if each.key not in known)]

    def _unseen(self, held: Mapping[str, Told]) -> Iterable[Condition]:
        for key, told in held.items():
            tier = key.removeprefix("tier ").removesuffix(" full")
            hidden = tier in self.away or HOT in self.away
            if (key == f"tier {tier} full" and hidden) or (key == DAMAGED and self.lost is None):
                yield Condition(key, "critical", told.text)


def rooms_of(repository: Repository) -> Rooms:
    """Of a repository that could be opened; asks each tier, and lists nothing."""
    found = Rooms()
    for name, opening in tiers_of(repository).items():
        try:
            found.free[name] = opening().free_bytes()
        except VmcellarError as error:
            found.away[name] = error.message
    try:
        found.lost = _lost(repository)
    except VmcellarError as error:
        found.away.setdefault(HOT, error.message)
    return found


def _lost(repository: Repository) -> int:
    """How many objects are noted as damaged; a few of them are tried, as a note may be of a fault that has passed."""
    noted = sorted(repository.index.lost())
    return len(noted) - sum(_reads(repository, chunk) for chunk in noted[:TRIED_MOST])


def _reads(repository: Repository, chunk: bytes) -> bool:
    try:
        repository.read_objects([chunk])
    except VmcellarError:
        return False
    return True
