"""The local SQLite file that an index caches index parts in: made, opened, and made anew when it is of no use."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from vmcellar.repository.writeahead import write_ahead

_VERSION = 2  # of the cache file; another version is thrown away and made again
_BUSY_SECONDS = 60.0
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


def open_file(path: Path) -> sqlite3.Connection:
    """The cache file, made anew when it is missing, not a database, or of another version."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _connect(path)
    except _StaleCacheError:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _connect(path)


def way_out(error: sqlite3.Error, path: Path) -> str:
    """What to do about an error of the cache file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another vmcellar process writes it: wait for it to end, then try again"
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return f"free space in {path.parent}, or name another folder under state: in vmcellar.yaml"
    return "delete the file: it is made again from the repository by the next command"


class _StaleCacheError(Exception):
    """The file is not a cache that this version can use."""


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        path.chmod(0o600)
        write_ahead(connection)
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
