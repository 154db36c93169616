"""Marks of gc: notes that name packs which no point needed when gc looked (docs/repository-format.md, section 12).

A mark is there before gc looks a second time, and goes only after the packs that it names are gone, or were found to be
needed after all. Who writes a point and then sees neither a mark nor a missing pack knows that gc will see the point.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from vmcellar.repository import layout
from vmcellar.repository.records import Instant, RecordKind
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.tiers.base import Tier

PackName = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

MARK_PACKS = 10_000
"""Packs that one mark names at most: a writer begins a new one."""


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class Mark:
    """`time` (seconds since the epoch) is that of the host that wrote it; `data` and `meta` are ids of packs in hex."""

    time: Instant
    data: tuple[PackName, ...]
    meta: tuple[PackName, ...]

    def packs(self) -> dict[bytes, int]:
        """The packs by id, with their kinds."""
        found = dict.fromkeys(map(bytes.fromhex, self.data), layout.KIND_DATA)
        return found | dict.fromkeys(map(bytes.fromhex, self.meta), layout.KIND_META)


_KIND = RecordKind(layout.MARKS, layout.MARK_MAGIC, layout.MARK_SEAL, TypeAdapter(Mark))


def write(tier: Tier, keyring: Keyring, time: float, packs: Collection[tuple[int, bytes]]) -> list[str]:
    """Mark these (kind, pack id); the ids of the new marks."""
    ordered = sorted(packs)
    names = []
    for start in range(0, len(ordered), MARK_PACKS):
        part = ordered[start : start + MARK_PACKS]
        data = tuple(pack.hex() for kind, pack in part if kind == layout.KIND_DATA)
        meta = tuple(pack.hex() for kind, pack in part if kind == layout.KIND_META)
        names.append(secrets.token_hex(layout.NAME_BYTES))
        _KIND.write(tier, keyring, layout.mark_key(names[-1]), Mark(time, data, meta))
    return names


def names_of(tier: Tier) -> list[str]:
    """The ids of all marks that are there."""
    return [key.removeprefix(layout.MARKS) for key, _ in tier.list(layout.MARKS)]


def read(tier: Tier, keyring: Keyring, names: Collection[str]) -> dict[str, Mark]:
    """These marks; one that went meanwhile is left out. IntegrityError names one that is damaged."""
    found = {}
    for name in names:
        try:
            found[name] = _KIND.read(tier, keyring, layout.mark_key(name))
        except NotFoundError:
            continue
    return found
