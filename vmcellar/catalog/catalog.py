"""The catalog of one repository: what its backups did, in SQL, beside the repository and never needed by a restore.

It lies in the state directory as `catalog.sqlite` and may be shared by repositories: every row names its own. What is
lost with it comes back by `vmcellar catalog rebuild`, except what only a run knows: failed runs, stages per disk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, event, func, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from vmcellar.catalog import models
from vmcellar.catalog.schema import bring_up
from vmcellar.errors import PermanentError, TransientError

FILE = "catalog.sqlite"
BUSY_SECONDS = 20.0
"""How long a writer waits for another one; each holds the file for milliseconds."""


class Catalog:
    """Any thread, any number of processes: each call opens and closes its own connection.

    A crash leaves either all rows of a call or none. Every method raises TransientError while the file stays locked,
    and PermanentError, with what to do, when it is damaged or cannot be written.
    """

    def __init__(self, path: Path, repository: str) -> None:
        """`path` is the SQLite file, made when missing; `repository` the id, in hex, whose rows this is about."""
        self.path = path
        self.repository = repository
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._engine = _sqlite(path)
        with self._named_errors():
            path.touch(mode=0o600)
            with self._writing() as connection:
                bring_up(connection, str(path))

    @classmethod
    def of(cls, state: Path, repository_id: bytes) -> Catalog:
        """The catalog in a state directory."""
        return cls(state / FILE, repository_id.hex())

    def add(self, rows: Iterable[models.Base]) -> None:
        """Write rows, all or none; one with the key of a row that is there takes its place."""
        with self._named_errors(), self._writing() as connection, Session(connection) as session:
            for row in rows:
                session.merge(row)
            session.commit()

    def add_new(self, rows: Iterable[models.Base]) -> None:
        """Write many rows that are known not to be there, all or none."""
        with self._named_errors(), self._writing() as connection, Session(connection) as session:
            session.add_all(list(rows))
            session.commit()

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

    def anomalies(self, vm: str = "") -> list[models.Anomaly]:
        """The anomalies that had consequences, of one VM or all, oldest first; detached rows."""
        wanted = select(models.Anomaly).where(models.Anomaly.repository == self.repository)
        if vm:
            wanted = wanted.where(models.Anomaly.vm == vm)
        with self.reading() as connection, Session(connection, expire_on_commit=False) as session:
            found = list(session.scalars(wanted.order_by(models.Anomaly.at, models.Anomaly.id)))
            session.expunge_all()
            return found

    def schedule_changes(self) -> list[models.ScheduleChange]:
        """All changes of schedules, oldest first; detached rows."""
        wanted = select(models.ScheduleChange).where(models.ScheduleChange.repository == self.repository)
        with self.reading() as connection, Session(connection, expire_on_commit=False) as session:
            found = list(session.scalars(wanted.order_by(models.ScheduleChange.time, models.ScheduleChange.vm)))
            session.expunge_all()
            return found

    def mark_gone(self, there: Collection[str], now: float) -> int:
        """Note that every known point which is not `there` has gone, and that those which are have not; how many
        went.
        """
        known = self.point_ids()
        gone, back = sorted(known - set(there)), sorted(known & set(there))
        with self._named_errors(), self._writing() as connection:
            went = _set_gone(connection, gone, now)
            _set_gone(connection, back, None)
        return went

    def counts(self) -> dict[str, int]:
        """Rows of this repository per table; disks and stages are counted through their runs."""
        own = select(models.Run.id).where(models.Run.repository == self.repository)
        with self.reading() as connection:
            found = {}
            for table in models.Base.metadata.sorted_tables:
                which = table.c.repository == self.repository if "repository" in table.c else table.c.run_id.in_(own)
                found[table.name] = connection.execute(
                    select(func.count()).select_from(table).where(which)
                ).scalar_one()
            return found

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for queries, which sees one state of the catalog however long it reads."""
        with self._named_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A connection that is the only writer from its begin on, so that two never wait for each other for ever."""
        with self._engine.connect() as opened:
            connection = opened.execution_options(vmcellar_writes=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            text = str(error.orig)
            if "locked" in text or "busy" in text:
                raise TransientError(f"catalog {self.path} is in use by other processes: {text}") from error
            raise PermanentError(
                f"catalog {self.path}: {text}",
                hint="check the space and permissions of its folder; if the file is damaged, move it away and type "
                "`vmcellar catalog rebuild`",
            ) from error
        except OSError as error:
            raise PermanentError(
                f"catalog {self.path}: {error.strerror}", hint="check `state` and its rights"
            ) from error


def repositories(path: Path) -> dict[str, int]:
    """The repositories that a catalog's file has runs of, with their number; none when there is no such file."""
    if not path.exists():
        return {}
    query = select(models.Run.repository, func.count()).group_by(models.Run.repository)
    with Catalog(path, "").reading() as connection:
        return {str(name): int(runs) for name, runs in connection.execute(query)}


def _set_gone(connection: Connection, ids: list[str], when: float | None) -> int:
    table, changed = models.Point, 0
    for start in range(0, len(ids), 500):  # SQLite takes some thousand values in one statement
        which = table.id.in_(ids[start : start + 500])
        state = table.gone.is_(None) if when is not None else table.gone.is_not(None)
        changed += connection.execute(update(table).where(which, state).values(gone=when)).rowcount
    return changed


def _write_ahead(connection: Any) -> None:
    """Have the file written ahead. SQLite does not wait for others here, as it does elsewhere: of several processes
    that open a new file at once, some are told at once that it is locked.
    """
    retrying = Retrying(
        retry=retry_if_exception(lambda error: "locked" in str(error)),
        stop=stop_after_delay(BUSY_SECONDS),
        wait=wait_random(0.001, 0.05),
        reraise=True,
    )
    retrying(connection.execute, "PRAGMA journal_mode = WAL")


def _sqlite(path: Path) -> Engine:
    """An engine for the file: no pool, as a connection costs nothing; write-ahead log, so that readers never wait."""
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's recipe: transactions begin where `_begins` says
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _begins(connection: Connection) -> None:
        writes = connection.get_execution_options().get("vmcellar_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
