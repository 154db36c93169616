"""Where the tests of the catalog keep its tables: a file, and a real PostgreSQL."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.paths import vm_folder
from lab.postgres import USER, Postgres
from lab.require import requires
from vmcellar.catalog.databases import FILE, Database, PostgresServer, SqliteFile

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this session's own; it starts in two seconds."""
    requires("root")
    requires("postgresql")
    with vm_folder("postgres") as folder, Postgres(folder) as server:
        yield server


def fresh(server: Postgres) -> PostgresServer:
    """An empty database of the server."""
    name = f"catalog{next(_numbers)}"
    server.create(name)
    return PostgresServer(f"postgresql://{USER}@127.0.0.1:{server.port}/{name}")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Nothing is in it yet."""
    if request.param == "sqlite":
        return SqliteFile(tmp_path / FILE)
    return fresh(request.getfixturevalue("postgres"))


@pytest.fixture
def migrated(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Database:
    """Another one of the kind of `database`, as empty."""
    if isinstance(database, SqliteFile):
        return SqliteFile(tmp_path / f"other-{FILE}")
    return fresh(request.getfixturevalue("postgres"))
