"""The catalog's server, where the configuration names one."""

from __future__ import annotations

from collections.abc import Iterator

from vmcellar.cli.checks.finding import Finding, failed
from vmcellar.config.model import Config
from vmcellar.errors import VmcellarError


def check_catalog(config: Config) -> Iterator[Finding]:
    """Whether it can be reached; nothing is written. Without a server the catalog is made where it is needed."""
    place = config.catalog
    if place.url is None:
        return
    if place.password is not None and place.password.exposed():
        yield Finding(
            "catalog", "warning", f"{place.password.describe()}: others may read it", f"chmod 600 {place.password.file}"
        )
    from sqlalchemy.exc import DatabaseError

    from vmcellar.catalog.databases import database_of
    from vmcellar.catalog.schema import is_current

    try:
        database = database_of(config)
    except VmcellarError as error:
        yield failed("catalog", error)
        return
    try:
        with database.engine.connect() as connection:
            tables = "its tables are there" if is_current(connection) else "the next backup makes its tables"
    except DatabaseError as error:
        yield failed("catalog", database.explain(error))
    else:
        yield Finding("catalog", "ok", f"{database.name}: {tables}")
