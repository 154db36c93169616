"""Rows of one catalog into another one: what a site does that moves from a file to a PostgreSQL, or back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Table, delete, insert, select, tuple_
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError

from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.databases import Database, PostgresServer, SqliteFile
from vmcellar.catalog.models import Base, JudgedSegments, Run
from vmcellar.catalog.schema import is_there
from vmcellar.config.catalogplace import CatalogPlace
from vmcellar.errors import PermanentError, UsageError

BATCH = 100
"""Rows, or runs with all that belongs to them, of one transaction: other writers wait for no more."""

Row = dict[str, Any]

_TABLES: dict[str, Table] = {
    name: table
    for name, table in Base.metadata.tables.items()
    if "repository" in table.c and name != JudgedSegments.__tablename__
}
_OF_A_RUN = [table for table in Base.metadata.sorted_tables if "repository" not in table.c]
"""They name their run, and it names its repository."""


@dataclass(slots=True)
class Copied:
    """`added` rows by table; `better` runs of which the other catalog knew only what their points tell, and now knows
    what they wrote themselves; `there` rows were there already, of which `other` say something else, and stay.
    """

    added: Counter[str] = field(default_factory=Counter)
    better: int = 0
    there: int = 0
    other: int = 0


def place_of(text: str) -> Database:
    """A catalog by the name of its file, or by a URL without a password (libpq looks for it in `~/.pgpass`).

    UsageError for a URL of another form; its password is not repeated.
    """
    if "://" not in text:
        return SqliteFile(Path(text))
    hint = "name a file, or postgresql://USER@HOST:PORT/DATABASE with its password in ~/.pgpass"
    try:
        CatalogPlace(url=text)
    except ValidationError as error:
        why = "; ".join(each["msg"].removeprefix("Value error, ").partition(": ")[0] for each in error.errors())
        raise UsageError(f"the URL of the other catalog {why}", hint=hint) from None
    return PostgresServer(text, said_in="what --from names")


def open_source(database: Database, target: Catalog) -> Catalog:
    """The rows of the target's repository in another catalog; PermanentError where there is none, UsageError where both
    are one. One that an older version made is brought up to date.
    """
    if database.name == target.name:
        raise UsageError(
            f"catalog {target.name} is the one that is in use",
            hint="say under `catalog:` in vmcellar.yaml where it is to go, and type this again",
        )
    none = PermanentError(f"{database.name} holds no catalog", hint="name it with --from")
    if database.missing():
        raise none
    try:
        with database.engine.connect() as connection:
            if not is_there(connection):
                raise none
    except DatabaseError as error:
        told = database.explain(error)
        if isinstance(database, SqliteFile) and isinstance(told, PermanentError):
            told.hint = "name a file that holds a catalog with --from"
        raise told from error
    return Catalog(database, target.repository)


def copy(source: Catalog, target: Catalog) -> Copied:
    """Add to the target what it lacks of the source's rows of one repository; nothing is deleted, and no row changes
    but those of runs of which the target knew less (`Copied.better`).

    May run beside backups. Each batch is one transaction, so that after a stop or a crash what is there is whole, and
    the next copy goes on. Raises what reading the one and writing the other raise.
    """
    done = Copied()
    with source.reading() as reading:
        for rows in _batches(reading, _TABLES[Run.__tablename__], source.repository):
            below = {table: _of_runs(reading, table, [row["id"] for row in rows]) for table in _OF_A_RUN}
            with target.writing() as writing:
                _add_runs(writing, rows, below, done)
        for table in _TABLES.values():
            if table.name != Run.__tablename__:
                for rows in _batches(reading, table, source.repository):
                    with target.writing() as writing:
                        _insert(writing, table, _new(writing, table, rows, done), done)
    return done


def _batches(connection: Connection, table: Table, repository: str) -> Iterator[list[Row]]:
    """The repository's rows by their keys, and by no other index: SQLite would sort all of them for each batch."""
    key = tuple(table.primary_key)
    wanted = select(table).where(table.c.repository.concat("") == repository).order_by(*key).limit(BATCH)
    rows = _rows(connection, wanted)
    while rows:
        yield rows
        last = tuple(rows[-1][column.name] for column in key)
        rows = _rows(connection, wanted.where(tuple_(*key) > tuple_(*last)))


def _add_runs(connection: Connection, rows: list[Row], below: dict[Table, list[Row]], done: Copied) -> None:
    """Each with its disks, stages and segments: a run is there whole, or not at all."""
    table = _TABLES[Run.__tablename__]
    wrote = [row["id"] for row in rows if row["recorded_by"] == "run"]
    less = select(table.c.id).where(table.c.id.in_(wrote), table.c.recorded_by == "point")
    poorer = list(connection.execute(less).scalars())
    done.better += len(poorer)
    connection.execute(delete(table).where(table.c.id.in_(poorer)))
    new = _new(connection, table, rows, done)
    ids = {row["id"] for row in new}
    for child, found in below.items():
        connection.execute(delete(child).where(child.c.run_id.in_(ids)))
        _insert(connection, child, [row for row in found if row["run_id"] in ids], done)
    _insert(connection, table, new, done)
    if new:  # which may be older than what a look has judged
        judged = JudgedSegments.repository == new[0]["repository"]
        connection.execute(delete(JudgedSegments).where(judged))


def _new(connection: Connection, table: Table, rows: list[Row], done: Copied) -> list[Row]:
    """Those of the rows that are not there."""
    names = [column.name for column in table.primary_key]
    keys = [tuple(row[name] for name in names) for row in rows]
    found = _rows(connection, select(table).where(tuple_(*table.primary_key).in_(keys)))
    there = {tuple(row[name] for name in names): row for row in found}
    done.there += len(there)
    done.other += sum(there.get(key, row) != row for key, row in zip(keys, rows, strict=True))
    return [row for key, row in zip(keys, rows, strict=True) if key not in there]


def _insert(connection: Connection, table: Table, rows: list[Row], done: Copied) -> None:
    if rows:
        connection.execute(insert(table), rows)
        done.added[table.name] += len(rows)


def _of_runs(connection: Connection, table: Table, runs: list[str]) -> list[Row]:
    return _rows(connection, select(table).where(table.c.run_id.in_(runs)))


def _rows(connection: Connection, query: Any) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]
