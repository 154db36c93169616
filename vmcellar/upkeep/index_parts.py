"""Index parts written anew: without packs that are to go, and small ones put together.

Every backup adds a part, and opening a repository, each commit and each gc list them all. So that their number does not
grow with that of the backups, the smallest are put together whenever there are enough of them that the largest of
these is no larger than the others together: a row is then written anew about as often as its part doubles, and what is
left is `FEWEST` parts, one for each doubling, and those that are large.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.errors import IntegrityError, VmcellarError
from vmcellar.repository import index_parts, layout
from vmcellar.repository.index_parts import IndexPart, PackEntry
from vmcellar.repository.layout import INDEX_ROW, index_key
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository

MERGED_ROWS = 1 << 18
"""Rows of a part that others were put into, at most: 15 MB. Larger ones would be fewer; but when one pack goes, the
whole part is written anew, and read anew by every host."""
FEWEST = 8
"""So many parts are put together at the least."""

Batch = tuple[list[str], list[PackEntry]]


def rewrite(repository: Repository, gone: Collection[bytes], check: Callable[[], None], *, merge: bool = True) -> int:
    """Take the packs `gone` out of all index parts, and put small parts together; how many parts went.

    Without `merge` only those parts are written anew that must be: a tier that is nearly full has no room for more.

    `repository` has an index cache that nothing but parts went into. New parts are durable before those go that they
    replace, so a crash leaves parts that say the same, which the next call puts together. `check` is called before each
    write and each deletion. Notes of damage go only when all packs that they name are gone. IntegrityError for a part
    that is damaged or contradicts another one: both stay.
    """
    repository.index.refresh(writing=True)
    old = plan(repository, gone, merge=merge)
    for keys, entries in _batches(repository, old, gone):
        check()
        _add(repository, entries, check)
        for key in keys:
            check()
            with suppress(NotFoundError):
                repository.tier.delete(key)
    repository.index.refresh(writing=True)
    return len(old)


def _add(repository: Repository, entries: list[PackEntry], check: Callable[[], None]) -> None:
    """Write the new parts; take them back if the lease was lost before they were there.

    Another gc may then have deleted packs that they name, and nothing else would ever correct them until the next one.
    No old part of theirs has gone yet.
    """
    made = repository.index.add(entries)
    try:
        check()
    except VmcellarError:
        for key in made:
            with suppress(VmcellarError):
                repository.tier.delete(key)
        raise


def plan(repository: Repository, gone: Collection[bytes], *, merge: bool = True) -> list[str]:
    """The keys of the parts that `rewrite` would write anew, smallest first."""
    sizes = dict(repository.tier.list(layout.INDEX))
    entries = {index_key(part) for part in repository.index.entry_parts()}
    most = MERGED_ROWS // 2 * INDEX_ROW.itemsize
    small = [(size, key) for key, size in sizes.items() if key in entries and size < most]
    asked = {index_key(part) for part in repository.index.parts_without(gone) | repository.index.parts_alike()}
    worth = _worth_merging(small) if merge else set()
    return sorted(worth | (asked & sizes.keys()), key=lambda key: (sizes[key], key))


def _worth_merging(small: Iterable[tuple[int, str]]) -> set[str]:
    """The most of the smallest of which the largest is no larger than the others together."""
    total, worth = 0, 0
    ordered = sorted(small)
    for count, (size, _) in enumerate(ordered, start=1):
        if count >= FEWEST and size <= total:
            worth = count
        total += size
    return {key for _, key in ordered[:worth]}


def _batches(repository: Repository, keys: Iterable[str], gone: Collection[bytes]) -> Iterator[Batch]:
    """What one new part takes, with the keys of the parts that it replaces: no more than that is held in memory."""
    done: dict[bytes, int] = {}
    replaced: list[str] = []
    pending: list[PackEntry] = []
    for key in keys:
        fresh = _unseen(key, _entries(repository, key), done, gone)
        if pending and _rows(pending) + _rows(fresh) > MERGED_ROWS:
            yield replaced, pending
            replaced, pending = [], []
        replaced.append(key)
        pending += fresh
    if replaced:
        yield replaced, pending


def _rows(entries: Iterable[PackEntry]) -> int:
    return sum(len(entry.rows) for entry in entries)


def _unseen(key: str, entries: Iterable[PackEntry], done: dict[bytes, int], gone: Collection[bytes]) -> list[PackEntry]:
    """Those entries that stay and that no part before had; `done` keeps how many rows each pack has."""
    fresh = []
    for entry in entries:
        if entry.pack.id in gone:
            continue
        if entry.pack.id not in done:
            fresh.append(entry)
        if done.setdefault(entry.pack.id, len(entry.rows)) != len(entry.rows):
            raise IntegrityError(
                f"{key} and another index part say different things about pack {entry.pack.key}: no pack is deleted",
                hint="type `vmcellar rebuild-index` to make the index again from the packs",
            )
    return fresh


def _entries(repository: Repository, key: str) -> list[PackEntry]:
    """What a part says about packs; none when it notes damage, or is gone."""
    part_id = bytes.fromhex(key.removeprefix(layout.INDEX))
    try:
        part = index_parts.decode(repository.keyring, part_id, repository.tier.get(key))
    except NotFoundError:  # another gc, that lost its lease, was as far
        return []
    return [] if part.damaged else [_entry(part, number, rows) for number, rows in _by_pack(part).items()]


def _by_pack(part: IndexPart) -> Mapping[int, index_parts.IndexRows]:
    """The rows of each pack in the order in which its objects lie."""
    rows = part.rows[np.lexsort((part.rows["ordinal"], part.rows["pack"]))]
    starts = np.searchsorted(rows["pack"], np.arange(len(part.packs) + 1))
    return {number: rows[starts[number] : starts[number + 1]] for number in range(len(part.packs))}


def _entry(part: IndexPart, number: int, rows: index_parts.IndexRows) -> PackEntry:
    return PackEntry(part.packs[number], rows["toc"])
