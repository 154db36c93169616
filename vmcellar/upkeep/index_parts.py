"""Index parts written anew: without packs that are to go, and small ones put together."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.repository import index_parts, layout
from vmcellar.repository.index_parts import IndexPart, PackEntry
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository

SMALL_ROWS = 4096
"""A part with fewer rows is a small one."""
SMALL_PARTS = 64
"""So many small parts are put together: opening a repository on a new machine reads each part."""


def rewrite(repository: Repository, gone: Collection[bytes], check: Callable[[], None]) -> int:
    """Take the packs `gone` out of all index parts, and put small parts together; how many parts went.

    The new parts are durable before an old one goes. `check` is called before each deletion. Notes of damage go only
    when all packs that they name are gone. A damaged part raises IntegrityError before anything is written.
    """
    parts = _read_all(repository)
    small = [key for key, part in parts.items() if not part.damaged and len(part.rows) < SMALL_ROWS]
    old = {key for key, part in parts.items() if _is_touched(part, gone)}
    if len(small) >= SMALL_PARTS:
        old.update(small)
    entries = {
        entry.pack.id: entry for key in sorted(old) for entry in _entries(parts[key]) if entry.pack.id not in gone
    }
    repository.index.add(list(entries.values()))
    for key in sorted(old):
        check()
        with suppress(NotFoundError):
            repository.tier.delete(key)
    repository.index.refresh(writing=True)
    return len(old)


def _read_all(repository: Repository) -> dict[str, IndexPart]:
    found = {}
    for key, _ in list(repository.tier.list(layout.INDEX)):
        part_id = bytes.fromhex(key.removeprefix(layout.INDEX))
        with suppress(NotFoundError):  # another gc is as far
            found[key] = index_parts.decode(repository.keyring, part_id, repository.tier.get(key))
    return found


def _is_touched(part: IndexPart, gone: Collection[bytes]) -> bool:
    named = [pack.id in gone for pack in part.packs]
    return all(named) if part.damaged else any(named)


def _entries(part: IndexPart) -> list[PackEntry]:
    if part.damaged:
        return []
    entries = []
    for number, pack in enumerate(part.packs):
        rows = part.rows[part.rows["pack"] == number]
        entries.append(PackEntry(pack, rows["toc"][np.argsort(rows["ordinal"], kind="stable")]))
    return entries
