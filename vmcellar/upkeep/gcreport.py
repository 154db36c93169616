"""What a run of gc tells, and how it reads names."""

from __future__ import annotations

from dataclasses import dataclass

from vmcellar.errors import IntegrityError
from vmcellar.repository import layout
from vmcellar.repository.layout import pack_key
from vmcellar.upkeep.lock import Locked


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a run found and did, or would do if `dry_run`; sizes in bytes.

    `marked` are keys of packs that were newly marked, `deleted` of packs that are gone. `waiting` tells for each mark
    that was left alone how many packs it names and why. `locked` would be among the deleted but for a lock; `extended`
    is how many objects were locked anew. `staging` are folders below the staging folder that writers
    left which died.
    """

    dry_run: bool
    points: int
    packs: int
    bytes: int
    needed: int
    marked: tuple[str, ...]
    marked_bytes: int
    deleted: tuple[str, ...]
    deleted_bytes: int
    repacked: tuple[str, ...]
    repacked_bytes: int
    repacked_live: int
    locked: tuple[Locked, ...]
    locked_bytes: int
    extended: int
    index_parts: int
    staging: tuple[str, ...]
    staging_bytes: int
    waiting: tuple[str, ...]
    notes: tuple[str, ...]


def pack_id(kind: int, key: str) -> bytes:
    """The id of the pack under a key; IntegrityError for what is no pack."""
    try:
        pack = bytes.fromhex(key.rpartition("/")[2])
    except ValueError:
        pack = b""
    if len(pack) != layout.NAME_BYTES or pack_key(kind, pack) != key:
        raise IntegrityError(f"{key} is no pack: nothing is deleted", hint="find out what put it there and remove it")
    return pack
