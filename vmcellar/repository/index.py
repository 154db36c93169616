"""Where every object lies: a local SQLite file that caches the tier's index parts and may be deleted at any time.

Several threads and processes may use one cache file at once (WAL, one transaction per part). Nothing of the index is
held in memory. The truth is on the tier: `refresh` brings the cache up to it, part by part.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository import index_parts, layout, marks
from vmcellar.repository.index_file import open_file, way_out
from vmcellar.repository.index_parts import IndexPart, PackEntry
from vmcellar.repository.layout import ID_BYTES, INDEX_ROW, index_key
from vmcellar.repository.pack_format import PackRef
from vmcellar.repository.pack_reader import Location
from vmcellar.repository.read_ahead import contents
from vmcellar.tiers.base import NotFoundError, Tier

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

_log = logging.getLogger(__name__)
_BATCH = 500
_ATTEMPTS = 5
_IMPORT_ROWS = 1 << 18
_BATCH_ROWS = 1 << 13
_KNOWN = """
SELECT e.chunk, p.id FROM entries e JOIN packs p ON p.number = e.pack WHERE e.chunk IN ({marks})
AND NOT EXISTS (SELECT 1 FROM damaged d WHERE d.chunk = e.chunk AND d.pack = p.id)
"""
_HOLDERS = "SELECT e.chunk, p.id FROM entries e JOIN packs p ON p.number = e.pack WHERE e.chunk IN ({marks})"
_LOST = """
SELECT DISTINCT d.chunk FROM damaged d WHERE NOT EXISTS (
    SELECT 1 FROM entries e JOIN packs p ON p.number = e.pack WHERE e.chunk = d.chunk
    AND NOT EXISTS (SELECT 1 FROM damaged x WHERE x.chunk = e.chunk AND x.pack = p.id))
"""
_LOCATE = """
SELECT d.chunk IS NOT NULL, e.chunk, e.ordinal, e.offset, e.stored, e.length, e.method, e.what, p.id, p.kind, p.epoch,
p.size FROM entries e JOIN packs p ON p.number = e.pack LEFT JOIN damaged d ON d.chunk = e.chunk AND d.pack = p.id
WHERE e.chunk IN ({marks}) ORDER BY d.chunk IS NOT NULL DESC, p.number DESC
"""


class Index:
    """The index of one repository. Any thread; every process may have its own or share the cache file."""

    def __init__(self, tier: Tier, keyring: Keyring, cache: Path) -> None:
        """`cache` is the SQLite file; its folder is made, a damaged or foreign file is made anew."""
        self._tier = tier
        self._keyring = keyring
        self._cache = cache
        self._free: list[sqlite3.Connection] = []
        self._closed = False
        self._lock = threading.Lock()
        self._marks: dict[str, frozenset[bytes]] = {}
        self._marked: frozenset[bytes] = frozenset()

    def close(self) -> None:
        """Close all connections, those in use when they are given back; the index is not used any more."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for connection in free:
            connection.close()

    def known(self, ids: Iterable[bytes]) -> set[bytes]:
        """Which of these deduplication may refer to: in a copy that never failed a check, in a pack that no gc marked
        (as of the last `refresh`; pitfalls 20 and 21).
        """
        return {chunk for chunk, pack in self._copies(_KNOWN, ids) if pack not in self._marked}

    def holders(self, ids: Iterable[bytes]) -> dict[bytes, set[bytes]]:
        """The ids of all packs that have a copy of each object, whatever is known against them."""
        found: dict[bytes, set[bytes]] = {}
        for chunk, pack in self._copies(_HOLDERS, ids):
            found.setdefault(chunk, set()).add(pack)
        return found

    def _copies(self, query: str, ids: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        with self._reading() as database:
            for part in _batches(ids):
                yield from database.execute(query.format(marks=_marks(part)), part).fetchall()

    def marks(self) -> dict[str, frozenset[bytes]]:
        """The packs that each mark of gc named, as of the last `refresh`."""
        return self._marks

    def locate(self, ids: Iterable[bytes]) -> dict[bytes, Location]:
        """Where each object lies, as far as the repository has it. Of several copies: one that never failed a check, in
        a pack that no gc marked (as of the last `refresh`), rather than another.
        """
        found: dict[bytes, Location] = {}
        ranks: dict[bytes, tuple[bool, bool]] = {}
        for location, damaged in self._located(ids):
            rank = damaged, location.pack.id in self._marked
            if location.chunk not in found or rank <= ranks[location.chunk]:
                found[location.chunk], ranks[location.chunk] = location, rank
        return found

    def copies(self, ids: Iterable[bytes]) -> dict[bytes, list[tuple[Location, bool]]]:
        """Every copy of each object, and whether it failed a check."""
        found: dict[bytes, list[tuple[Location, bool]]] = {}
        for location, damaged in self._located(ids):
            found.setdefault(location.chunk, []).append((location, damaged))
        return found

    def _located(self, ids: Iterable[bytes]) -> Iterator[tuple[Location, bool]]:
        """All copies, of one object the oldest that is not damaged last."""
        packs: dict[bytes, PackRef] = {}
        with self._reading() as database:
            for part in _batches(ids):
                for damaged, chunk, *place, pack_id, kind, epoch, size in database.execute(
                    _LOCATE.format(marks=_marks(part)), part
                ):
                    pack = packs.get(pack_id)
                    if pack is None:
                        pack = packs[pack_id] = PackRef(pack_id, kind, epoch, size)
                    yield Location(pack, chunk, *place), bool(damaged)

    def stored_bytes(self) -> dict[bytes, int]:
        """Bytes of objects in each pack, whether anything needs them or not. Reads the whole cache."""
        query = "SELECT p.id, SUM(e.stored) FROM entries e JOIN packs p ON p.number = e.pack GROUP BY e.pack"
        with self._reading() as database:
            return dict(database.execute(query).fetchall())

    def packs(self) -> Iterator[PackRef]:
        """All packs that the index names."""
        with self._reading() as database:
            rows = database.execute("SELECT id, kind, epoch, size FROM packs ORDER BY id").fetchall()
        for row in rows:
            yield PackRef(*row)

    def entry_parts(self) -> set[bytes]:
        """The ids of all parts but notes of damage."""
        with self._reading() as database:
            query = "SELECT id FROM parts WHERE id NOT IN (SELECT part FROM damaged)"
            return {row[0] for row in database.execute(query)}

    def parts_without(self, packs: Collection[bytes]) -> set[bytes]:
        """The ids of the parts that say anything about these packs; of notes of damage, those about nothing else."""
        with self._reading() as database:
            named = database.execute("SELECT n.part, p.id FROM named n JOIN packs p ON p.number = n.pack").fetchall()
            noted = database.execute("SELECT DISTINCT part, pack FROM damaged").fetchall()
        some = {part for part, pack in named if pack in packs} | {part for part, pack in noted if pack in packs}
        return some - {part for part, pack in noted if pack not in packs}

    def parts_alike(self) -> set[bytes]:
        """The ids of the parts that name a pack which another one names, too."""
        query = "SELECT part FROM named WHERE pack IN (SELECT pack FROM named GROUP BY pack HAVING COUNT(*) > 1)"
        with self._reading() as database:
            return {row[0] for row in database.execute(query)}

    def refresh(self, *, writing: bool = False) -> None:
        """Bring the cache up to the tier: new parts in, parts that are gone out; and the marks of gc.

        IntegrityError names a part that is damaged; what the tier raises when a listing is not complete. A damaged mark
        is an error for who is `writing`, and a warning for others.
        """
        self._refresh_marks(writing)  # first: when a mark goes, index parts with its packs are gone already
        for _ in range(_ATTEMPTS - 1):
            with suppress(NotFoundError):  # gc put parts together after they were listed: list what replaces them
                self._bring_up()
                return
        self._bring_up()

    def _bring_up(self) -> None:
        with self._reading() as database:  # before listing: a part that comes in between is not taken for one that went
            cached = {row[0] for row in database.execute("SELECT id FROM parts")}
        sizes: dict[str, int] = {}
        before, listed = cached, self._listed(sizes)
        while listed != before:  # a listing is no instant: what gc put in the place of parts that it missed may be new
            went: set[bytes] = set()
            for parts in self._read_parts(sorted(listed - cached), sizes, went):
                self._import(parts)
            cached = cached | (listed - went)
            before, listed = listed, self._listed(sizes)
            if went & listed:
                raise NotFoundError(
                    f"{index_key(min(went & listed))} is listed, and is not there", hint="run it again in a minute"
                )
        if cached - listed:
            self._drop(cached - listed)

    def _listed(self, sizes: dict[str, int]) -> set[bytes]:
        found = dict(self._tier.list(layout.INDEX))
        sizes.update(found)
        return {_part_id(key) for key in found}

    def _read_parts(
        self, wanted: Sequence[bytes], sizes: Mapping[str, int], went: set[bytes]
    ) -> Iterator[list[tuple[bytes, IndexPart]]]:
        """These parts, as many at a time as one transaction should take in: each costs as much as hundreds of rows.

        Those that gc took away since they were listed are added to `went`: what replaces them is in the next listing.
        """
        pending: list[tuple[bytes, IndexPart]] = []
        rows = 0
        with closing(contents(self._tier, [index_key(part_id) for part_id in wanted], sizes)) as objects:
            for part_id, (_, content) in zip(wanted, objects, strict=True):
                try:
                    part = index_parts.decode(self._keyring, part_id, content())
                except NotFoundError:
                    went.add(part_id)
                    continue
                pending.append((part_id, part))
                rows += len(part.rows)
                if rows >= _IMPORT_ROWS:
                    yield pending
                    pending, rows = [], 0
        if pending:
            yield pending

    def _refresh_marks(self, writing: bool) -> None:
        found = {}
        for name in marks.names_of(self._tier):
            try:
                known = self._marks.get(name)
                read = {} if known is not None else marks.read(self._tier, self._keyring, [name])
            except IntegrityError as error:
                if writing:
                    raise
                _log.warning("%s", error.message)
                continue
            found.update({name: known} if known is not None else {n: frozenset(m.packs()) for n, m in read.items()})
        self._marks = found
        self._marked = frozenset().union(*found.values())

    def add(self, entries: Sequence[PackEntry]) -> list[str]:
        """Make the objects of these packs known to everybody: durable parts on the tier, then the cache; their keys."""
        return [self._put(part) for part in index_parts.parts_of(entries)]

    def note_damaged(self, found: Iterable[Location]) -> None:
        """Record that these copies failed a check: they are never a target of deduplication again (pitfall 21)."""
        objects = list(found)
        packs = sorted({location.pack for location in objects}, key=lambda pack: pack.id)
        rows = np.zeros(len(objects), INDEX_ROW)
        for row, location in zip(rows, objects, strict=True):
            row["pack"], row["ordinal"] = packs.index(location.pack), location.ordinal
            row["toc"]["chunk"] = np.frombuffer(location.chunk, np.uint8)
        if objects:
            self._put(IndexPart(tuple(packs), index_parts.sort_rows(rows), damaged=True))

    def lost(self) -> set[bytes]:
        """The ids of all objects that failed a check and of which there is no better copy."""
        with self._reading() as database:
            return {row[0] for row in database.execute(_LOST)}

    def forget_damage(self, packs: Collection[bytes]) -> None:
        """Take back what was noted about these packs, which were read in full since and are whole.

        A note of other packs too is written anew before it goes, so a crash leaves at most one note too many.
        """
        with self._reading() as database:
            rows = database.execute("SELECT DISTINCT part, pack FROM damaged").fetchall()
        for part_id in sorted({part_id for part_id, pack in rows if pack in packs}):
            part = index_parts.decode(self._keyring, part_id, self._tier.get(index_key(part_id)))
            stay = part.rows[[part.packs[row["pack"]].id not in packs for row in part.rows]]
            if len(stay):
                self._put(IndexPart(part.packs, stay, damaged=True))
            self._tier.delete(index_key(part_id))
            self._drop({part_id})

    def _put(self, part: IndexPart) -> str:
        part_id = secrets.token_bytes(layout.NAME_BYTES)
        self._tier.put(index_key(part_id), index_parts.encode(self._keyring, part_id, part))
        self._import([(part_id, part)])
        return index_key(part_id)

    def _import(self, parts: Sequence[tuple[bytes, IndexPart]]) -> None:
        with self._writing() as database:
            new = [self._import_part(database, part_id, part) for part_id, part in parts]
            _insert(database, index_parts.sort_rows(np.concatenate(new)))

    def _import_part(self, database: sqlite3.Connection, part_id: bytes, part: IndexPart) -> index_parts.IndexRows:
        """Take in all but the rows of packs that no part named before: they come back, with the packs' numbers here."""
        if database.execute("SELECT 1 FROM parts WHERE id = ?", (part_id,)).fetchone():
            return part.rows[:0]
        database.execute("INSERT INTO parts VALUES (?)", (part_id,))
        if not part.damaged:
            return self._import_packs(database, part_id, part)
        marks = ((chunk, part.packs[row["pack"]].id, part_id) for chunk, row in _with_ids(part))
        database.executemany("INSERT OR IGNORE INTO damaged VALUES (?, ?, ?)", marks)
        return part.rows[:0]

    @staticmethod
    def _import_packs(database: sqlite3.Connection, part_id: bytes, part: IndexPart) -> index_parts.IndexRows:
        numbers = np.zeros(len(part.packs), np.uint32)  # 0: another part names it, too: with the same rows
        for i, pack in enumerate(part.packs):
            row = (pack.id, pack.kind, pack.epoch, pack.size)
            done = database.execute("INSERT OR IGNORE INTO packs (id, kind, epoch, size) VALUES (?,?,?,?)", row)
            if done.rowcount:
                numbers[i] = done.lastrowid or 0
            named = "INSERT OR IGNORE INTO named SELECT ?, number FROM packs WHERE id = ?"
            database.execute(named, (part_id, pack.id))
        owners = numbers[part.rows["pack"]]
        rows: index_parts.IndexRows = part.rows[owners > 0]
        rows["pack"] = owners[owners > 0]
        return rows

    def _drop(self, gone: set[bytes]) -> None:
        with self._writing() as database:
            for part_id in gone:
                database.execute("DELETE FROM parts WHERE id = ?", (part_id,))
                database.execute("DELETE FROM named WHERE part = ?", (part_id,))
                database.execute("DELETE FROM damaged WHERE part = ?", (part_id,))
            lost = database.execute("DELETE FROM packs WHERE number NOT IN (SELECT pack FROM named)")
            if lost.rowcount:  # most parts that go were put together with others: their packs stay
                database.execute("DELETE FROM entries WHERE pack NOT IN (SELECT number FROM packs)")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._borrow()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)
        except sqlite3.Error as error:
            raise PermanentError(f"index cache {self._cache}: {error}", hint=way_out(error, self._cache)) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                if database.in_transaction:  # a full disk has ended it already
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _borrow(self) -> sqlite3.Connection:
        """A connection for one thread; there are as many as were ever in use at once, not one for each thread."""
        with self._lock:
            if self._free:
                return self._free.pop()
            return open_file(self._cache)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(connection)
                return
        connection.close()


def _part_id(key: str) -> bytes:
    try:
        return bytes.fromhex(key.removeprefix(layout.INDEX))
    except ValueError as error:
        raise IntegrityError(f"{key} is not an index part", hint="find out what put it there and remove it") from error


def _insert(database: sqlite3.Connection, rows: index_parts.IndexRows) -> None:
    """These rows with the numbers of their packs, in the order in which the file has them: each page is met once."""
    names = ("offset", "stored", "length", "method", "what")
    for start in range(0, len(rows), _BATCH_ROWS):
        part = rows[start : start + _BATCH_ROWS]
        toc = part["toc"]
        columns = (part["pack"].tolist(), part["ordinal"].tolist(), *(toc[name].tolist() for name in names))
        values = zip(_ids(part), *columns, strict=True)
        database.executemany("INSERT OR IGNORE INTO entries VALUES (?,?,?,?,?,?,?,?)", values)


def _batches(ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    """In the order in which the file has them."""
    every = sorted(ids)
    for start in range(0, len(every), _BATCH):
        yield every[start : start + _BATCH]


def _marks(values: Sequence[bytes]) -> str:
    return ",".join("?" * len(values))


def _ids(rows: index_parts.IndexRows) -> list[bytes]:
    data = rows["toc"]["chunk"].tobytes()
    return [data[i : i + ID_BYTES] for i in range(0, len(data), ID_BYTES)]


def _with_ids(part: IndexPart) -> Iterator[tuple[bytes, np.void]]:
    return zip(_ids(part.rows), part.rows, strict=True)
