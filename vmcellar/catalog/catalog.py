"""The catalog of one repository: what its backups did, in SQL, beside the repository and never needed by a restore.

It lies in the state directory as `catalog.sqlite`, or in a PostgreSQL (`catalog:` of the configuration), and may be
shared by repositories and hosts: every row names its own repository. What is lost with it comes back by `vmcellar
catalog rebuild`, except what only a run knows: failed runs, stages per disk, segments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import ColumnElement, Select, func, insert, inspect, select, tuple_, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from vmcellar.catalog import models
from vmcellar.catalog.databases import WRITES, Database, database_of
from vmcellar.catalog.schema import bring_up, is_current
from vmcellar.errors import PermanentError

if TYPE_CHECKING:
    from vmcellar.config.model import Config

Row = TypeVar("Row", bound=models.Base)

_AT_ONCE = 500
"""Values in one statement: SQLite takes some thousand."""


class Catalog:
    """Any thread, any number of processes: each call opens and closes its own connection.

    A crash leaves either all rows of a call or none. Every method raises TransientError while others have the tables
    locked or the server cannot be reached, and PermanentError, with what to do, when they cannot be read or written.
    """

    def __init__(self, database: Database, repository: str) -> None:
        """The tables are made when missing; `repository` is the id, in hex, whose rows this is about."""
        self.repository = repository
        self._database = database
        with self._named_errors():
            database.prepare()
            self._bring_up()

    @classmethod
    def of(cls, config: Config, repository_id: bytes) -> Catalog:
        """The catalog of a configuration."""
        return cls(database_of(config), repository_id.hex())

    @property
    def name(self) -> str:
        """Where it lies, for messages: a file or a URL without its password."""
        return self._database.name

    def add(self, rows: Iterable[models.Base]) -> None:
        """Write rows, all or none; one with the key of a row that is there takes its place."""
        with self.writing() as connection, Session(connection) as session:
            _merge(session, rows)
            session.commit()

    def add_new(self, rows: Iterable[models.Base]) -> None:
        """Write many rows that are known not to be there, all or none."""
        with self.writing() as connection, Session(connection) as session:
            session.add_all(list(rows))
            session.commit()

    def change(self, rows: Iterable[models.Base], columns: Collection[str]) -> None:
        """Write these columns of rows that are there, all or none; what others wrote in other columns stays."""
        with self.writing() as connection:
            for row in rows:
                table = type(row)
                key = zip(inspect(table).primary_key, _key_of(row), strict=True)
                values = {name: getattr(row, name) for name in columns}
                connection.execute(update(table).where(*(column == value for column, value in key)).values(values))

    def point_ids(self) -> set[str]:
        """The points of this repository that the catalog knows, also those that are gone."""
        with self.reading() as connection:
            own = models.Point.repository == self.repository
            return set(connection.execute(select(models.Point.id).where(own)).scalars())

    def evidence_ids(self) -> set[str]:
        """The evidence of this repository that the catalog knows."""
        with self.reading() as connection:
            own = models.Evidence.repository == self.repository
            return set(connection.execute(select(models.Evidence.id).where(own)).scalars())

    def run_ids(self) -> set[str]:
        """The runs of this repository that the catalog knows."""
        with self.reading() as connection:
            own = models.Run.repository == self.repository
            return set(connection.execute(select(models.Run.id).where(own)).scalars())

    def claim(self, row: models.Base, column: str, was: Collection[Any], value: Any) -> bool:
        """Write a column of a row if it still holds one of these values; whether it did. Of several that ask at once
        one is told so.
        """
        table = type(row)
        key = zip(inspect(table).primary_key, _key_of(row), strict=True)
        which = *(each == wanted for each, wanted in key), getattr(table, column).in_(was)
        with self.writing() as connection:
            return connection.execute(update(table).where(*which).values({column: value})).rowcount == 1

    def vms(self) -> set[str]:
        """The VMs of which this repository has runs, also failed ones."""
        with self.reading() as connection:
            own = select(models.Run.vm).where(models.Run.repository == self.repository).distinct()
            return set(connection.execute(own).scalars())

    def known_points(self, ids: Collection[str]) -> set[str]:
        """Those of these points that the catalog knows, also those that are gone."""
        return self._known(models.Point, ids)

    def known_runs(self, ids: Collection[str]) -> set[str]:
        """Those of these runs that the catalog knows."""
        return self._known(models.Run, ids)

    def _own(self, table: type[models.Point | models.Run]) -> ColumnElement[bool]:
        """The rows of this repository, kept from the index by VM, which SQLite takes for a narrow one: with it, each
        question after some ids, or after what is there, looks up all of the repository's millions of rows.
        """
        return table.repository.concat("") == self.repository

    def _known(self, table: type[models.Point | models.Run], ids: Collection[str]) -> set[str]:
        """Asks for these alone: a catalog of years holds millions of others."""
        wanted = sorted(ids)
        found: set[str] = set()
        with self.reading() as connection:
            for start in range(0, len(wanted), _AT_ONCE):
                which = table.id.in_(wanted[start : start + _AT_ONCE])
                found |= set(connection.execute(select(table.id).where(self._own(table), which)).scalars())
        return found

    def anomalies(self, vm: str = "") -> list[models.Anomaly]:
        """The anomalies that had consequences, of one VM or all, oldest first; detached rows."""
        wanted = select(models.Anomaly).where(models.Anomaly.repository == self.repository)
        if vm:
            wanted = wanted.where(models.Anomaly.vm == vm)
        return self._detached(wanted.order_by(models.Anomaly.at, models.Anomaly.id))

    def schedule_changes(self) -> list[models.ScheduleChange]:
        """All changes of schedules, oldest first; detached rows."""
        wanted = select(models.ScheduleChange).where(models.ScheduleChange.repository == self.repository)
        return self._detached(wanted.order_by(models.ScheduleChange.time, models.ScheduleChange.vm))

    def storage_advice(self) -> list[models.StorageAdvice]:
        """All advice on storing that was given, oldest first; detached rows."""
        wanted = select(models.StorageAdvice).where(models.StorageAdvice.repository == self.repository)
        return self._detached(wanted.order_by(models.StorageAdvice.time, models.StorageAdvice.id))

    def _detached(self, wanted: Select[tuple[Row]]) -> list[Row]:
        with self.reading() as connection, Session(connection, expire_on_commit=False) as session:
            found = list(session.scalars(wanted))
            session.expunge_all()
            return found

    def standing_points(self) -> set[str]:
        """The points of this repository that, as far as the catalog knows, are there."""
        own = self._own(models.Point), models.Point.gone.is_(None)
        with self.reading() as connection:
            return set(connection.execute(select(models.Point.id).where(*own)).scalars())

    def mark_gone(self, there: Collection[str], now: float, known: Collection[str] | None = None) -> int:
        """Note that every point which was known and is not `there` has gone, and that those which are have not; how
        many went. `known` is what `standing_points` gave before somebody looked what is there: a point that a backup
        commits meanwhile has not gone, one that a prune drops meanwhile has.
        """
        alive = self.standing_points() if known is None else set(known)
        gone, back = sorted(alive - set(there)), sorted(set(there) - alive)
        with self.writing() as connection:
            went = _set_gone(connection, gone, now)
            _set_gone(connection, back, None)
        return went

    def note_gone(self, points: Collection[str], now: float) -> None:
        """Note of these points that they have gone."""
        with self.writing() as connection:
            _set_gone(connection, sorted(points), now)

    def note_error(self, point: str, error: str) -> None:
        """Note with the run that made a point what went wrong after it was written."""
        own = models.Run.repository == self.repository, models.Run.point_id == point
        with self.writing() as connection:
            connection.execute(update(models.Run).where(*own).values(error=error))

    def counts(self) -> dict[str, int]:
        """Rows of this repository per table; disks and stages are counted through their runs."""
        own = select(models.Run.id).where(models.Run.repository == self.repository)
        with self.reading() as connection:
            found = {}
            for table in models.Base.metadata.sorted_tables:
                if table is models.JudgedSegments.__table__:  # no history
                    continue
                which = table.c.repository == self.repository if "repository" in table.c else table.c.run_id.in_(own)
                found[table.name] = connection.execute(
                    select(func.count()).select_from(table).where(which)
                ).scalar_one()
            return found

    def _bring_up(self) -> None:
        """Readers of tables that are up to date never wait for a writer."""
        with self.reading() as connection:
            if is_current(connection):
                return
        with self._writing() as connection:
            bring_up(connection, self.name)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for queries, which sees one state of the catalog however long it reads."""
        with self._named_errors(), self._database.engine.connect() as connection:
            yield connection.execution_options(**self._database.reading)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection for statements that are done together or not at all. Other writers wait for its end, and fail
        after some seconds: for short work alone.
        """
        with self._named_errors(), self._writing() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A connection that is the only writer from its begin on, so that two never wait for each other for ever."""
        with self._database.engine.connect() as opened:
            connection = opened.execution_options(**{WRITES: True})
            with connection.begin():
                yield connection

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise self._database.explain(error) from error
        except OSError as error:
            raise PermanentError(
                f"catalog {self.name}: {error.strerror}", hint="check `state` and its rights"
            ) from error


def repositories(database: Database) -> dict[str, float]:
    """The repositories that a catalog has runs of, with when the newest began (seconds since the epoch); none where
    there never was a catalog.
    """
    if database.missing():
        return {}
    query = select(models.Run.repository, func.max(models.Run.started)).group_by(models.Run.repository)
    with Catalog(database, "").reading() as connection:
        return {str(name): float(newest) for name, newest in connection.execute(query)}


def _merge(session: Session, rows: Iterable[models.Base]) -> None:
    """Write rows with one query per table and some hundred rows, instead of one per row."""
    by_table: dict[type[models.Base], dict[tuple[Any, ...], models.Base]] = {}
    for row in rows:
        by_table.setdefault(type(row), {})[_key_of(row)] = row
    for table, wanted in by_table.items():
        there = _keys_there(session, table, list(wanted))
        for key in there & wanted.keys():
            session.merge(wanted[key])
        new = [_values(row) for key, row in wanted.items() if key not in there]
        if new:
            session.execute(insert(table), new)


def _values(row: models.Base) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in inspect(type(row)).column_attrs}


def _key_of(row: models.Base) -> tuple[Any, ...]:
    return tuple(inspect(type(row)).primary_key_from_instance(row))


def _keys_there(session: Session, table: type[models.Base], keys: list[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    columns = inspect(table).primary_key
    found: set[tuple[Any, ...]] = set()
    for start in range(0, len(keys), _AT_ONCE):
        which = tuple_(*columns).in_(keys[start : start + _AT_ONCE])
        found |= {tuple(row) for row in session.execute(select(*columns).where(which))}
    return found


def _set_gone(connection: Connection, ids: list[str], when: float | None) -> int:
    table, changed = models.Point, 0
    for start in range(0, len(ids), _AT_ONCE):
        which = table.id.in_(ids[start : start + _AT_ONCE])
        state = table.gone.is_(None) if when is not None else table.gone.is_not(None)
        changed += connection.execute(update(table).where(which, state).values(gone=when)).rowcount
    return changed
