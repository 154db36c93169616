"""The index made again from the packs alone, for a new machine or after damage (DESIGN.md, section 4, invariant 5)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.errors import CancelledError, IntegrityError
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import index_parts, layout, leases
from vmcellar.repository.index_parts import IndexPart, PackEntry
from vmcellar.repository.packs import PackReader
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.leases import HeldLease
    from vmcellar.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What was found: packs and objects that are in the new index, and what could not be read, each with the reason."""

    packs: int
    objects: int
    damaged: tuple[str, ...]


def rebuild_index(
    repository: Repository,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
    *,
    dry_run: bool = False,
) -> RebuildReport:
    """Read the table of contents of every pack, write new index parts, then remove the old ones.

    New parts are durable before an old one goes, so a crash leaves objects listed twice, which does no harm; parts that
    others add meanwhile stay. What was noted as damaged stays noted. Stopped, it writes what it has read so far;
    killed, it may have written some parts: the next one on this host goes on after these. A damaged pack is reported,
    not an error, and old parts that say what lies in it stay. A `dry_run` reads everything and writes nothing.
    PermanentError while a gc runs, TransientError when this was paused for so long that its lease was taken away,
    CancelledError when stopped. Reports packs as stage "index".
    """
    cancel = cancel or CancelToken()
    with ExitStack() as stack:
        lease = None
        if not dry_run:
            work = leases.holding(repository.tier, repository.keyring, leases.REBUILD, repository.clock)
            lease = stack.enter_context(work)
            others = leases.remove_stale(repository.tier, repository.keyring, repository.clock())
            leases.refuse_second(other for other in others if other.id != lease.id)
        return _rebuild(repository, progress, cancel, lease)


def _rebuild(
    repository: Repository, progress: ProgressSink, cancel: CancelToken, lease: HeldLease | None
) -> RebuildReport:
    """Without a lease nothing is written. With one: a gc that took it away may have deleted packs that were read."""
    damaged: list[str] = []
    begun = _Begun(repository)
    written = {} if lease is None else begun.parts()
    old = [key for key, _ in repository.tier.list(layout.INDEX) if key not in written]
    read = {pack.id for part in written.values() for pack in part.packs}
    objects = sum(len(part.rows) for part in written.values())
    progress("index", len(read))
    pending: list[PackEntry] = []
    try:
        for entry in _entries(repository, damaged, {pack.hex() for pack in read}, cancel):
            read.add(entry.pack.id)
            objects += len(entry.rows)
            progress("index", 1)
            if lease is not None:
                pending.append(entry)
            if sum(len(each.rows) for each in pending) >= layout.INDEX_ROWS_MAX:
                begun.add(lease, pending)
                pending = []
    except CancelledError:
        begun.add(lease, pending)
        raise
    if lease is None:
        return RebuildReport(len(read), objects, tuple(damaged))
    begun.add(lease, pending)
    for key in old:
        lease.check()
        with suppress(NotFoundError):  # somebody else rebuilds, too
            if not _says_more(repository, key, read):
                repository.tier.delete(key)
    repository.index.refresh()
    begun.end()
    return RebuildReport(len(read), objects, tuple(damaged))


class _Begun:
    """The keys of the parts that a rebuild on this host has written, in a file beside the index cache, until it has
    ended. A lost or torn line costs the time to read those packs again.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._path = repository.cache_dir / f"rebuild-{repository.id.hex()}"

    def parts(self) -> dict[str, IndexPart]:
        """Those that still stand: every pack that one names is there, as long as it was."""
        try:
            keys = self._path.read_text().split()
        except (OSError, UnicodeDecodeError):
            return {}
        tier = self._repository.tier
        sizes = {key: size for prefix in (layout.META, layout.DATA) for key, size in tier.list(prefix)}
        there = {key for key, _ in tier.list(layout.INDEX)}
        found = {}
        for key in there.intersection(keys):
            with suppress(IntegrityError, NotFoundError):
                part = index_parts.decode(
                    self._repository.keyring, bytes.fromhex(key.removeprefix(layout.INDEX)), tier.get(key)
                )
                if all(sizes.get(pack.key) == pack.size for pack in part.packs):
                    found[key] = part
        return found

    def add(self, lease: HeldLease | None, entries: Iterable[PackEntry]) -> None:
        """Write parts of what was read, if anything may be written."""
        every = list(entries)
        if lease is None or not every:
            return
        lease.check()
        keys = self._repository.index.add(every)
        with suppress(OSError), self._path.open("a") as file:
            file.writelines(f"{key}\n" for key in keys)

    def end(self) -> None:
        """All is done: the next rebuild reads everything."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _entries(
    repository: Repository, damaged: list[str], known: Collection[str], cancel: CancelToken
) -> Iterator[PackEntry]:
    for prefix in (layout.META, layout.DATA):
        for key, _ in repository.tier.list(prefix):
            cancel.check()
            if key.rpartition("/")[2] in known:
                continue
            try:
                with PackReader(repository.tier, key, repository.keyring) as reader:
                    yield PackEntry(reader.pack, reader.toc())
            except IntegrityError as error:
                damaged.append(error.message)


def _says_more(repository: Repository, key: str, read: Collection[bytes]) -> bool:
    """Whether an index part says what the packs cannot: it notes damage, or names a pack that is there and could not
    be read. A part that cannot be read itself has nothing to keep.
    """
    part_id = bytes.fromhex(key.removeprefix(layout.INDEX))
    try:
        part = index_parts.decode(repository.keyring, part_id, repository.tier.get(key))
    except IntegrityError:
        return False
    return part.damaged or any(pack.id not in read and repository.tier.exists(pack.key) for pack in part.packs)
