"""Which point objects this host has checked before: a local SQLite file that may be deleted at any time.

Checking a signature is most of what listing many points costs. The cache remembers, per point, a keyed digest of the
object's *bytes* that passed. A listing still reads every object from the tier, takes its digest, opens its seal and
parses it; only for bytes that are the very ones seen before is the signature not checked again. So neither a name, a
size nor a time is trusted: an object that was damaged, replaced or replayed has other bytes, and is checked in full.

The digest's key is made from a signature of this repository's key, which is never stored. Whoever can write the file,
but cannot sign points, cannot make an entry that passes; and the file tells nothing but ids of points. Whatever is
wrong with the file costs time, never a point: it is made anew, or goes unused when its folder cannot be written.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

_log = logging.getLogger(__name__)
_VERSION = 1  # of the cache file; another version is thrown away
_BUSY_SECONDS = 5.0
_CONTEXT = b"vmcellar cache of checked points, version 1\n"


class PointsCache:
    """The cache of one repository. Any thread, any number of processes: each call opens and closes the file."""

    def __init__(self, keyring: Keyring, repository_id: bytes, path: Path) -> None:
        """`path` is the SQLite file; its folder is made when there is something to write."""
        self._path = path
        self._repository_id = repository_id
        self._key = blake3(keyring.sign(_CONTEXT + repository_id)).digest()

    def digest(self, point_id: str, data: bytes) -> bytes:
        """What stands for these bytes as the object of this point."""
        return blake3(point_id.encode() + b"\n" + data, key=self._key).digest()

    def load(self) -> dict[str, bytes]:
        """The digests of objects that passed, by point id; none when there is no file that can be used."""
        try:
            with self._open() as database:
                return dict(database.execute("SELECT id, digest FROM checked").fetchall())
        except (sqlite3.Error, OSError) as error:
            self._discard(error)
            return {}

    def update(self, gone: Collection[str], passed: Mapping[str, bytes]) -> None:
        """Forget the points that are `gone`, remember the digests that `passed`."""
        try:
            with self._open() as database, database:
                database.executemany("DELETE FROM checked WHERE id = ?", ((name,) for name in gone))
                database.executemany("INSERT OR REPLACE INTO checked VALUES (?, ?)", passed.items())
        except (sqlite3.Error, OSError) as error:
            self._discard(error)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database:
            # No fsync: what a power cut leaves of the file is refused by SQLite, or by the digests.
            database.execute("PRAGMA synchronous = OFF")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                database.execute("CREATE TABLE IF NOT EXISTS checked (id TEXT PRIMARY KEY, digest BLOB) WITHOUT ROWID")
                database.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"it is of version {version}")
            yield database

    def _discard(self, error: Exception) -> None:
        """Busy or not writable is left alone; what is no cache of ours goes, so that the next call makes it anew."""
        _log.debug("cache of checked points %s: %s", self._path, error)
        if isinstance(error, OSError | sqlite3.OperationalError):
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as failed:
            _log.debug("cache of checked points %s: %s", self._path, failed)
