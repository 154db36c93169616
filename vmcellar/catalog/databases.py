"""Where the tables of the catalog lie: a SQLite file in the state directory, or a PostgreSQL that many hosts share.

Both give the same promises, which `Catalog` builds on: a reader sees one state of all tables however long it reads, and
there is one writer at a time, from the begin of its transaction on, so that two never wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import URL, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError, OperationalError

from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.repository.writeahead import BUSY_SECONDS, write_ahead

if TYPE_CHECKING:
    from vmcellar.config.model import Config

FILE = "catalog.sqlite"
CONNECT_SECONDS = 10
STATEMENT_SECONDS = 60
"""How long one statement may take on a server that answers; a query over millions of runs takes seconds."""
SILENCE_SECONDS = 30
"""How long a server's host may be gone before a connection counts as lost."""

WRITES = "vmcellar_writes"
"""The option of a connection that is going to write; `Catalog` sets it before the transaction begins."""

_WRITERS_LOCK = 0x766D63656C6C6172
"""The advisory lock of PostgreSQL that makes writers queue up: "vmcellar"."""

_PASSING = frozenset({"08", "40", "53", "57"})
"""SQLSTATE classes of what may pass: connection, rolled back, no resources, an operator's hand (PostgreSQL, appendix
A)."""
_LOCK_NOT_AVAILABLE = "55P03"
_QUERY_CANCELED = "57014"
_OVERLONG = (
    "if it comes again, see what keeps the server busy, or give it longer by the URL of `catalog:`: "
    f"`?options=-c%20statement_timeout%3D{5 * STATEMENT_SECONDS}s`"
)
_HINTS = {
    "22": "a value of the history does not fit its column, which no version should write: please report this",
    "23": "a row contradicts another one: `vmcellar catalog show` names rows that no analysis uses",
    "25": "the server takes no writes: name the primary one, not a standby",
    "42": "check the rights of its user: it must own the tables, or be allowed to make them",
}
"""What to do, by the SQLSTATE class of what does not pass: data, constraint, transaction state, access rule or name."""


class Database(Protocol):
    """A place for the tables. Any thread, any number of processes."""

    name: str
    """What messages call it; never a password."""
    engine: Engine
    reading: Mapping[str, Any]
    """The options of a connection for queries."""

    def missing(self) -> bool:
        """Whether it is certain that nothing was ever written here."""

    def prepare(self) -> None:
        """Make room for the tables; OSError when that fails."""

    def explain(self, error: DatabaseError) -> VmcellarError:
        """TransientError for what may pass, else PermanentError with what to do."""


def database_of(config: Config) -> Database:
    """Where the catalog of a configuration lies; PermanentError when its password cannot be read."""
    settings = config.catalog
    if settings.url is None:
        return SqliteFile(config.state / FILE)
    return PostgresServer(settings.url, settings.password.read().decode() if settings.password else None)


class SqliteFile:
    """One file of this host, written ahead, so that readers never wait. No pool, as a connection costs nothing."""

    reading: Mapping[str, Any] = {}

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})

        @event.listens_for(self.engine, "connect")
        def _connected(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # SQLAlchemy's recipe: transactions begin where `_begins` says
            write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")

        @event.listens_for(self.engine, "begin")
        def _begins(connection: Connection) -> None:
            writes = connection.get_execution_options().get(WRITES)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def missing(self) -> bool:
        """Whether there is no file."""
        return not self.path.exists()

    def prepare(self) -> None:
        """Make the file, for its owner alone: it names VMs."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.touch(mode=0o600)

    def explain(self, error: DatabaseError) -> VmcellarError:
        """Locked passes; what is damaged, full or not ours does not."""
        text = str(error.orig)
        if "locked" in text or "busy" in text:
            return TransientError(f"catalog {self.name} is in use by other processes: {text}")
        return PermanentError(
            f"catalog {self.name}: {text}",
            hint="check the space and permissions of its folder; if the file is damaged, move it away and type "
            "`vmcellar catalog rebuild`",
        )


class PostgresServer:
    """A database of a server. No pool: processes fork, and a run writes once, at its end.

    A server whose host is gone is given up after SILENCE_SECONDS, one that takes connections and says nothing after
    CONNECT_SECONDS, one that stops to answer some seconds after a statement's limit (`patience.py`). Nothing waits for
    ever, unless the URL sets `statement_timeout` to none.
    """

    reading: Mapping[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

    def __init__(self, url: str, password: str | None = None, *, said_in: str = "`catalog:` in vmcellar.yaml") -> None:
        """`url` is `postgresql://USER@HOST:PORT/DATABASE`, with libpq's parameters (`?sslmode=verify-full`); `said_in`
        is where people wrote it.
        """
        place = make_url(url)
        self._said_in = said_in
        self.name = place.set(query={}).render_as_string(hide_password=True)
        self.engine = create_engine(_with_driver(place, password), poolclass=NullPool, connect_args=_patience(place))

        @event.listens_for(self.engine, "do_connect")
        def _connects(_dialect: object, _record: object, arguments: list[Any], named: dict[str, Any]) -> Any:
            from vmcellar.catalog import patience  # noqa: PLC0415  (psycopg; only where there is a server)

            return patience.connect(*arguments, **named)

        @event.listens_for(self.engine, "begin")
        def _begins(connection: Connection) -> None:
            if connection.get_execution_options().get(WRITES):
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_SECONDS * 1000:.0f}ms'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS_LOCK})")

    def missing(self) -> bool:
        """Never certain without asking."""
        return False

    def prepare(self) -> None:
        """Nothing: an administrator made the database."""

    def explain(self, error: DatabaseError) -> VmcellarError:
        """What the connection or the load brought about passes; what the server refuses does not."""
        text = " ".join(str(error.orig).split())
        state = getattr(error.orig, "sqlstate", None)
        if isinstance(error, OperationalError) and state == _LOCK_NOT_AVAILABLE:
            return TransientError(f"catalog {self.name} is in use by other processes: {text}")
        if isinstance(error, OperationalError) and (state is None or state[:2] in _PASSING):
            hint = _OVERLONG if state == _QUERY_CANCELED else f"check that the server runs, and {self._said_in}"
            return TransientError(f"catalog {self.name}: {text}", hint=hint)
        if state is None:  # it never came to the server
            hint = f"check {self._said_in}"
        else:
            hint = _HINTS.get(state[:2], "look for this message in the server's log, which tells the statement")
        return PermanentError(f"catalog {self.name}: {text}", hint=hint)


def _with_driver(place: URL, password: str | None) -> URL:
    named = place.set(drivername="postgresql+psycopg")
    return named if password is None else named.set(password=password)


def _patience(place: URL) -> dict[str, Any]:
    """libpq's parameters that bound each wait, but for those that the URL sets itself; of `options` the last counts."""
    ours = {
        "application_name": "vmcellar",
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": SILENCE_SECONDS * 1000,
    }
    bounds = (f"-c statement_timeout={STATEMENT_SECONDS * 1000}", *place.normalized_query.get("options", ()))
    return {name: value for name, value in ours.items() if name not in place.query} | {"options": " ".join(bounds)}
