"""The catalog's tables in a database: made when it is new, brought up to date when it is older."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import inspect, text

from vmcellar.errors import PermanentError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.engine import Connection

HEAD = "v0005"
"""The newest migration; held by a test. With it a catalog that is up to date opens without Alembic."""


def is_current(connection: Connection) -> bool:
    """Whether the database has all tables as this version wants them."""
    return _version(connection) == HEAD


def is_there(connection: Connection) -> bool:
    """Whether the database has the tables of any version."""
    return _version(connection) is not None


def bring_up(connection: Connection, name: str) -> None:
    """Run the migrations that the database lacks, in the connection's transaction.

    PermanentError for a catalog that a newer vmcellar made; `name` is what messages call it.
    """
    version = _version(connection)
    if version == HEAD:  # another process was first
        return
    from alembic import command  # noqa: PLC0415  (half a second, once per change of the tables)
    from alembic.util.exc import CommandError  # noqa: PLC0415

    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise PermanentError(
            f"catalog {name} is of version {version}, which this vmcellar does not know",
            hint="use the newer vmcellar that made it, or move it away and type `vmcellar catalog rebuild`",
        ) from error


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
