"""The catalog's tables in a database: made when it is new, brought up to date when it is older."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, String, Table, inspect, text

from vmcellar.catalog.models import Base
from vmcellar.errors import PermanentError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.engine import Connection

HEAD = "v0006"
"""The newest migration; held by a test. With it a catalog that is new or up to date opens without Alembic."""

_VERSIONS = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""As Alembic makes it."""


def is_current(connection: Connection) -> bool:
    """Whether the database has all tables as this version wants them."""
    return _version(connection) == HEAD


def is_there(connection: Connection) -> bool:
    """Whether the database has the tables of any version."""
    return _version(connection) is not None


def bring_up(connection: Connection, name: str) -> None:
    """Make the tables, or run the migrations that the database lacks, in the connection's transaction.

    PermanentError for a catalog that a newer vmcellar made; `name` is what messages call it.
    """
    version = _version(connection)
    if version == HEAD:  # another process was first
        return
    if version is None:
        _make(connection)
        return
    from alembic import command  # noqa: PLC0415  (0.1 s, once per change of the tables)
    from alembic.util.exc import CommandError  # noqa: PLC0415

    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise PermanentError(
            f"catalog {name} is of version {version}, which this vmcellar does not know",
            hint="use the newer vmcellar that made it, or move it away and type `vmcellar catalog rebuild`",
        ) from error


def _make(connection: Connection) -> None:
    """What all migrations together make; an error where a table of one of these names is there already."""
    Base.metadata.create_all(connection, checkfirst=False)
    _VERSIONS.create(connection)
    connection.execute(_VERSIONS.insert().values(version_num=HEAD))


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration, without a file."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "vmcellar.catalog:migrations")
    config.attributes["connection"] = connection
    return config


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
