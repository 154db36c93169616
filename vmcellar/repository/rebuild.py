"""The index made again from the packs alone, for a new machine or after damage (DESIGN.md, section 4, invariant 5)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import index_parts, layout
from vmcellar.repository.index_parts import PackEntry
from vmcellar.repository.packs import PackReader
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What was found: packs and objects that are in the new index, and what could not be read, each with the reason."""

    packs: int
    objects: int
    damaged: tuple[str, ...]


def rebuild_index(
    repository: Repository, progress: ProgressSink = no_progress, cancel: CancelToken | None = None
) -> RebuildReport:
    """Read the table of contents of every pack, write new index parts, then remove the old ones.

    New parts are durable before an old one goes, so a crash leaves objects listed twice, which does no harm; parts that
    others add meanwhile stay. What was noted as damaged stays noted. A damaged pack is reported, not an error. Reports
    packs as stage "index".
    """
    cancel = cancel or CancelToken()
    old = [key for key, _ in repository.tier.list(layout.INDEX)]
    damaged: list[str] = []
    pending: list[PackEntry] = []
    packs = objects = 0
    for entry in _entries(repository, damaged, cancel):
        pending.append(entry)
        packs, objects = packs + 1, objects + len(entry.rows)
        progress("index", 1)
        if sum(len(each.rows) for each in pending) >= layout.INDEX_ROWS_MAX:
            repository.index.add(pending)
            pending = []
    repository.index.add(pending)
    for key in old:
        with suppress(NotFoundError):  # somebody else rebuilds, too
            if not _is_note(repository, key):
                repository.tier.delete(key)
    repository.index.refresh()
    return RebuildReport(packs, objects, tuple(damaged))


def _entries(repository: Repository, damaged: list[str], cancel: CancelToken) -> Iterator[PackEntry]:
    for prefix in (layout.META, layout.DATA):
        for key, _ in repository.tier.list(prefix):
            cancel.check()
            try:
                with PackReader(repository.tier, key, repository.keyring) as reader:
                    yield PackEntry(reader.pack, reader.toc())
            except IntegrityError as error:
                damaged.append(error.message)


def _is_note(repository: Repository, key: str) -> bool:
    """Whether an index part notes damage; a part that cannot be read has nothing to keep."""
    part_id = bytes.fromhex(key.removeprefix(layout.INDEX))
    try:
        return index_parts.decode(repository.keyring, part_id, repository.tier.get(key)).damaged
    except IntegrityError:
        return False
