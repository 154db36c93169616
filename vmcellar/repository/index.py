"""Where every object lies: a local SQLite file that caches the tier's index parts and may be deleted at any time.

Several threads and processes may use one cache file at once (WAL, one transaction per part). Nothing of the index is
held in memory. The truth is on the tier: `refresh` brings the cache up to it, part by part.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository import index_parts, layout, marks
from vmcellar.repository.index_parts import IndexPart, PackEntry
from vmcellar.repository.layout import ID_BYTES, INDEX_ROW, index_key
from vmcellar.repository.pack_format import PackRef
from vmcellar.repository.pack_reader import Location
from vmcellar.tiers.base import NotFoundError, Tier

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

_log = logging.getLogger(__name__)
_VERSION = 2  # of the cache file; another version is thrown away and made again
_BATCH = 500
_ATTEMPTS = 5
_BUSY_SECONDS = 60.0
_IMPORT_ROWS = 1 << 16
_CHECKPOINT_PAGES = 16384  # of 4 KiB: names are random, so each checkpoint writes pages from all over the file
_SCHEMA = """
CREATE TABLE parts (id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE packs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, kind INTEGER NOT NULL, epoch BLOB NOT NULL,
    size INTEGER NOT NULL);
CREATE TABLE named (part BLOB NOT NULL, pack INTEGER NOT NULL, PRIMARY KEY (part, pack)) WITHOUT ROWID;
CREATE TABLE entries (
    chunk BLOB NOT NULL, pack INTEGER NOT NULL, ordinal INTEGER NOT NULL, offset INTEGER NOT NULL,
    stored INTEGER NOT NULL, length INTEGER NOT NULL, method INTEGER NOT NULL, what INTEGER NOT NULL,
    PRIMARY KEY (chunk, pack, ordinal)) WITHOUT ROWID;
CREATE TABLE damaged (
    chunk BLOB NOT NULL, pack BLOB NOT NULL, part BLOB NOT NULL, PRIMARY KEY (chunk, pack, part)) WITHOUT ROWID;
"""
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
                    pack = packs.setdefault(pack_id, PackRef(pack_id, kind, epoch, size))
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
        listed = {_part_id(key) for key, _ in self._tier.list(layout.INDEX)}
        for parts in self._read_parts(sorted(listed - cached)):
            self._import(parts)
        if cached - listed:
            self._drop(cached - listed)

    def _read_parts(self, wanted: Iterable[bytes]) -> Iterator[list[tuple[bytes, IndexPart]]]:
        """These parts, as many at a time as one transaction should take in: each costs as much as hundreds of rows."""
        pending: list[tuple[bytes, IndexPart]] = []
        rows = 0
        for part_id in wanted:
            part = index_parts.decode(self._keyring, part_id, self._tier.get(index_key(part_id)))
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

    def add(self, entries: Sequence[PackEntry]) -> None:
        """Make the objects of these packs known to everybody: durable parts on the tier, then the cache."""
        for part in index_parts.parts_of(entries):
            self._put(part)

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

    def _put(self, part: IndexPart) -> None:
        part_id = secrets.token_bytes(layout.NAME_BYTES)
        self._tier.put(index_key(part_id), index_parts.encode(self._keyring, part_id, part))
        self._import([(part_id, part)])

    def _import(self, parts: Sequence[tuple[bytes, IndexPart]]) -> None:
        with self._writing() as database:
            for part_id, part in parts:
                self._import_part(database, part_id, part)

    def _import_part(self, database: sqlite3.Connection, part_id: bytes, part: IndexPart) -> None:
        if database.execute("SELECT 1 FROM parts WHERE id = ?", (part_id,)).fetchone():
            return
        if part.damaged:
            marks = ((chunk, part.packs[row["pack"]].id, part_id) for chunk, row in _with_ids(part))
            database.executemany("INSERT OR IGNORE INTO damaged VALUES (?, ?, ?)", marks)
        else:
            self._import_entries(database, part_id, part)
        database.execute("INSERT INTO parts VALUES (?)", (part_id,))

    @staticmethod
    def _import_entries(database: sqlite3.Connection, part_id: bytes, part: IndexPart) -> None:
        numbers: dict[int, int] = {}
        for i, pack in enumerate(part.packs):
            row = (pack.id, pack.kind, pack.epoch, pack.size)
            done = database.execute("INSERT OR IGNORE INTO packs (id, kind, epoch, size) VALUES (?,?,?,?)", row)
            if done.rowcount:  # else another part names it, too: with the same rows, as packs never change
                numbers[i] = int(done.lastrowid or 0)
            named = "INSERT OR IGNORE INTO named SELECT ?, number FROM packs WHERE id = ?"
            database.execute(named, (part_id, pack.id))
        rows = part.rows[np.isin(part.rows["pack"], list(numbers))]
        toc = rows["toc"]
        names = ("offset", "stored", "length", "method", "what")
        owners = [numbers[pack] for pack in rows["pack"].tolist()]
        columns = (_ids(rows), owners, rows["ordinal"].tolist(), *(toc[name].tolist() for name in names))
        values = zip(*columns, strict=True)
        database.executemany("INSERT OR IGNORE INTO entries VALUES (?,?,?,?,?,?,?,?)", values)

    def _drop(self, gone: set[bytes]) -> None:
        with self._writing() as database:
            for part_id in gone:
                database.execute("DELETE FROM parts WHERE id = ?", (part_id,))
                database.execute("DELETE FROM named WHERE part = ?", (part_id,))
                database.execute("DELETE FROM damaged WHERE part = ?", (part_id,))
            database.execute("DELETE FROM packs WHERE number NOT IN (SELECT pack FROM named)")
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
            raise PermanentError(
                f"index cache {self._cache}: {error}",
                hint="delete the file: it is made again from the repository by the next command",
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _borrow(self) -> sqlite3.Connection:
        """A connection for one thread; there are as many as were ever in use at once, not one for each thread."""
        with self._lock:
            if self._free:
                return self._free.pop()
            return _open(self._cache)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(connection)
                return
        connection.close()


def _open(path: Path) -> sqlite3.Connection:
    """The cache file, made anew when it is missing, not a database, or of another version."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _connect(path)
    except _StaleCacheError:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _connect(path)


class _StaleCacheError(Exception):
    """The file is not a cache that this version can use."""


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        _prepare(connection)
    except sqlite3.OperationalError:
        connection.close()
        raise
    except (sqlite3.DatabaseError, _StaleCacheError) as error:
        connection.close()
        raise _StaleCacheError from error
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")
    if version not in (0, _VERSION):
        raise _StaleCacheError


def _part_id(key: str) -> bytes:
    try:
        return bytes.fromhex(key.removeprefix(layout.INDEX))
    except ValueError as error:
        raise IntegrityError(f"{key} is not an index part", hint="find out what put it there and remove it") from error


def _batches(ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    every = list(ids)
    for start in range(0, len(every), _BATCH):
        yield every[start : start + _BATCH]


def _marks(values: Sequence[bytes]) -> str:
    return ",".join("?" * len(values))


def _ids(rows: index_parts.IndexRows) -> list[bytes]:
    data = rows["toc"]["chunk"].tobytes()
    return [data[i : i + ID_BYTES] for i in range(0, len(data), ID_BYTES)]


def _with_ids(part: IndexPart) -> Iterator[tuple[bytes, np.void]]:
    return zip(_ids(part.rows), part.rows, strict=True)
