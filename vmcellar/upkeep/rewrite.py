"""Move what points need out of packs into new ones, in rounds. No point, map or pack is changed.

A round: the live objects of some packs are read, opened, checked, and sealed anew (as compressed as they were) into new
packs, in the order that the caller wants; these are placed, read back and checked; an index part names them; and only
then a mark names the old packs, so that no writer refers to them any more. A later gc deletes them like any other
marked pack, when the grace time is over and the copies were read once more. A round that dies leaves packs that no
point needs, or objects that lie twice; the next run begins with the rounds that are not done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from vmcellar.crypto.base import EpochLockedError
from vmcellar.errors import IntegrityError
from vmcellar.progress import ProgressSink
from vmcellar.repository import marks
from vmcellar.repository.index_parts import PackEntry
from vmcellar.repository.layout import KIND_DATA, KIND_META, PACK_BYTES
from vmcellar.repository.packs import Group, Location, PackReader, PackRef, PackWriter, groups, verify_pack
from vmcellar.repository.repository import by_pack
from vmcellar.tiers.base import ArchivedError
from vmcellar.tiers.cellar import CellarTier
from vmcellar.upkeep.reach import Live

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository

ROUND_BYTES = 2 << 30
"""Live bytes of one round: so much room is needed at a time, and so much work is lost when a run is stopped."""
_SLICE_BYTES = 64 << 20
"""So much is held in memory while it is put in order."""
STAGING = "rewrite-"
"""How the folders begin in which new packs are built."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What became of some packs: `old` are marked now, `live` bytes of them lie in the packs `new`; `notes` tell which
    packs had to stay and why.
    """

    old: tuple[PackRef, ...] = ()
    new: tuple[PackRef, ...] = ()
    live: int = 0
    notes: tuple[str, ...] = ()

    def __add__(self, other: Rewritten) -> Rewritten:
        return Rewritten(
            self.old + other.old, self.new + other.new, self.live + other.live, self.notes + other.notes
        )  # fmt: skip


Order = Callable[[Mapping[bytes, Location]], Sequence[bytes]]
"""Puts the ids of a round's objects into the order in which they shall lie."""

Parts = Callable[[Mapping[bytes, Location]], Sequence[Sequence[bytes]]]
"""The same, in parts."""


def as_they_lie(found: Mapping[bytes, Location]) -> Sequence[bytes]:
    """Pack by pack, in the order in which the objects lie there."""
    return [location.chunk for _, objects in by_pack(found.values()) for location in objects]


def openable(repository: Repository, packs: Iterable[Live]) -> tuple[list[Live], tuple[str, ...]]:
    """Those packs whose objects can be opened with the keys at hand, and that lie on hot: to read others costs money or
    a thaw. Notes tell of the others, if any.
    """
    usable, locked, elsewhere = [], 0, 0
    tier = repository.tier
    known: dict[bytes, bool] = {}
    for live in packs:
        pack = live.pack
        if pack.kind == KIND_DATA and pack.epoch not in known:
            known[pack.epoch] = _opens(repository, pack)
        if isinstance(tier, CellarTier) and not tier.hot.exists(pack.key):
            elsewhere += 1
        elif pack.kind == KIND_META or known[pack.epoch]:
            usable.append(live)
        else:
            locked += 1
    notes = {
        f"{locked} packs stay as they are: they are sealed to recipients, and this host cannot open them": locked,
        f"{elsewhere} packs stay as they are until no point needs them: they are not on the hot tier": elsewhere,
    }
    return usable, tuple(note for note, count in notes.items() if count)


def _opens(repository: Repository, pack: PackRef) -> bool:
    try:
        repository.keyring.pack_cipher(pack.epoch, pack.id)
    except EpochLockedError:
        return False
    return True


def rounds(packs: Iterable[Live], limit: int = ROUND_BYTES) -> Iterator[list[Live]]:
    """The packs in rounds of at most about `limit` live bytes, each of one kind."""
    every = list(packs)
    for kind in (KIND_META, KIND_DATA):
        pending: list[Live] = []
        for live in every:
            if live.pack.kind != kind:
                continue
            if pending and sum(each.bytes for each in pending) + live.bytes > limit:
                yield pending
                pending = []
            pending.append(live)
        if pending:
            yield pending


def live_objects(repository: Repository, packs: Iterable[Live]) -> dict[bytes, Location]:
    """The live objects of these packs by id, from their own tables of contents. Of copies one is taken."""
    found: dict[bytes, Location] = {}
    for live in packs:
        with PackReader(repository.tier, live.pack.key, repository.keyring) as reader:
            for location in reader.locations():
                if live.has(location.ordinal):
                    found.setdefault(location.chunk, location)
    return found


def _unpaced(count: int) -> None:
    del count


class Rewriter:
    """Does rounds; one thread, which is not one of `pool`'s. `check` is called often: it raises to stop. `pace` is
    called before so many bytes are read from the tier, or written to it, and returns when they may.
    """

    def __init__(
        self,
        repository: Repository,
        pool: Executor,
        check: Callable[[], None],
        progress: ProgressSink,
        pace: Callable[[int], None] = _unpaced,
    ) -> None:
        self._repository = repository
        self._tier = repository.tier
        self._pool = pool
        self._check = check
        self._progress = progress
        self._pace = pace

    def round(self, packs: Sequence[Live], order: Order = as_they_lie) -> Rewritten:
        """Rewrite these packs, all of one kind. One that is damaged or lies in an archive class stays, with a note.
        Raises what else the tier raises and what `check` raises; nothing is marked then. Reports packs as stage
        "rewrite".
        """
        return self.split(packs, lambda objects: [order(objects)])

    def split(self, packs: Sequence[Live], parts: Parts) -> Rewritten:
        """As `round`, with no two of `parts` in one new pack."""
        notes: list[str] = []
        left = list(packs)
        while left:
            try:
                done = self._round(left, parts)
            except _UnreadableError as error:
                notes.append(f"pack {error.pack.key} stays as it is: {error.problem}")
                left = [live for live in left if live.pack.id != error.pack.id]
                continue
            return done + Rewritten(notes=tuple(notes))
        return Rewritten(notes=tuple(notes))

    def _round(self, packs: Sequence[Live], parts: Parts) -> Rewritten:
        objects: dict[bytes, Location] = {}
        for live in packs:
            with _blaming(live.pack):
                objects = live_objects(self._repository, [live]) | objects
        kind = packs[0].pack.kind
        entries = [entry for order in parts(objects) if order for entry in self._write(kind, objects, order)]
        self._repository.index.add(entries)
        self._check()
        old = tuple(live.pack for live in packs)
        now = self._repository.clock()
        marks.write(self._tier, self._repository.keyring, now, [(pack.kind, pack.id) for pack in old])
        self._progress("rewrite", len(old))
        stored = sum(location.stored for location in objects.values())
        return Rewritten(old, tuple(entry.pack for entry in entries), stored)

    def _write(self, kind: int, objects: Mapping[bytes, Location], order: Sequence[bytes]) -> list[PackEntry]:
        staging = self._tier.staging_dir() / f"{STAGING}{uuid4().hex}"
        staging.mkdir(mode=0o700)
        writer = PackWriter(self._repository.keyring, staging, kind)
        try:
            for part in _slices(objects, order):
                self._append(writer, objects, part)
            return [self._place(sealed.path, sealed.key) for sealed in writer.finish()]
        except BaseException:
            writer.abort()
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _append(self, writer: PackWriter, objects: Mapping[bytes, Location], part: Sequence[bytes]) -> None:
        """Read in the order in which they lie, append in the order in which they are wanted."""
        packed: dict[bytes, bytes] = {}
        for pack, found in by_pack(objects[each] for each in part):
            self._check()
            self._pace(sum(each.stored for each in found))
            with PackReader(self._tier, pack.key, self._repository.keyring, pack=pack) as reader:
                read = [self._pool.submit(_read, reader, group) for group in groups(found)]
                errors = [future.exception() for future in read]  # waits for all: the reader is closed after this
                for future, error in zip(read, errors, strict=True):
                    if isinstance(error, IntegrityError | ArchivedError):
                        raise _UnreadableError(pack, error.message) from error
                    packed.update(future.result())
        for each in part:
            found_at = objects[each]
            writer.append_packed(each, packed.pop(each), found_at.length, found_at.method, found_at.what)

    def _place(self, path: Path, key: str) -> PackEntry:
        self._pace(2 * path.stat().st_size)  # it is read back, too
        self._tier.adopt(path, key)
        verify_pack(self._tier, key, self._repository.keyring, self._pool)
        with PackReader(self._tier, key, self._repository.keyring) as reader:
            return PackEntry(reader.pack, reader.toc())


def _slices(objects: Mapping[bytes, Location], order: Sequence[bytes]) -> Iterator[list[bytes]]:
    pending: list[bytes] = []
    size = 0
    for each in order:
        pending.append(each)
        size += objects[each].stored
        if size >= _SLICE_BYTES:
            yield pending
            pending, size = [], 0
    if pending:
        yield pending


def _read(reader: PackReader, group: Group) -> dict[bytes, bytes]:
    return {found.chunk: packed for found, packed in reader.read_group_packed(group)}


class _UnreadableError(Exception):
    """A pack of a round is damaged, or must be thawed first."""

    def __init__(self, pack: PackRef, problem: str) -> None:
        super().__init__(problem)
        self.pack = pack
        self.problem = problem


class _blaming:  # noqa: N801  (used like a function)
    """Turn errors of the block that are about the pack into one that names it."""

    def __init__(self, pack: PackRef) -> None:
        self._pack = pack

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, IntegrityError | ArchivedError):
            raise _UnreadableError(self._pack, error.message) from error


def unreadable_copies(
    repository: Repository, relieved: Mapping[bytes, Collection[bytes]], check: Callable[[], None]
) -> dict[bytes, str]:
    """Read the other copies of objects that lie in marked packs, as the last look before these go.

    `relieved` are ids by marked pack; the result says which packs must stay, and why. A copy that turns out to be
    damaged is noted in the index, so that the marked one counts again; one in an archive class cannot be looked at.
    """
    wanted = {name for names in relieved.values() for name in names}
    bad: dict[bytes, str] = {}
    damaged: list[Location] = []
    for pack, found in by_pack(repository.locate(list(wanted)).values()):
        check()
        for location, problem in _problems(repository, pack, found):
            bad[location.chunk] = problem.message
            if isinstance(problem, IntegrityError):
                damaged.append(location)
    repository.index.note_damaged(damaged)
    reasons = {pack: [bad[name] for name in names if name in bad] for pack, names in relieved.items()}
    return {pack: problems[0] for pack, problems in reasons.items() if problems}


def _problems(
    repository: Repository, pack: PackRef, found: Sequence[Location]
) -> Iterator[tuple[Location, IntegrityError | EpochLockedError | ArchivedError]]:
    with PackReader(repository.tier, pack.key, repository.keyring, pack=pack) as reader:
        for location in found:
            try:
                reader.read(location)
            except (IntegrityError, EpochLockedError) as error:
                yield location, error
            except ArchivedError as error:
                moved = isinstance(repository.tier, CellarTier)  # by a rebalance, which compared every byte
                if not moved or repository.tier.size(pack.key) != pack.size:
                    yield location, error


def small(live: Live) -> bool:
    """Whether a pack is far from full."""
    return live.pack.size < PACK_BYTES // 4
