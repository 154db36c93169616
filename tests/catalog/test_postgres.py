"""What is PostgreSQL's alone: who may wait for whom, what a server that is away or refuses gives; and that it gives the
same as the file.
"""

from __future__ import annotations

import re
import socket
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from lab.postgres import USER, Postgres
from tests.catalog.conftest import fresh
from tests.catalog.filled import REPOSITORY, fill, same_rows
from tests.catalog.rows import run, segment
from tests.docs.pages import ROOT, blocks
from vmcellar.catalog import databases
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.databases import FILE, PostgresServer, SqliteFile, database_of
from vmcellar.catalog.metrics import CatalogCollector
from vmcellar.cli.checks.catalog import check_catalog
from vmcellar.config.catalogplace import CatalogPlace
from vmcellar.config.load import parse_config
from vmcellar.config.model import Config
from vmcellar.config.secrets import SecretReference
from vmcellar.errors import PermanentError, TransientError


def test_it_gives_what_the_file_gives(postgres: Postgres, tmp_path: Path) -> None:
    file, server = Catalog(SqliteFile(tmp_path / FILE), REPOSITORY), Catalog(fresh(postgres), REPOSITORY)
    for catalog in (file, server):
        fill(catalog)
    same_rows(file, server)


def test_a_writer_that_waits_too_long_for_another_is_told_to_come_again(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog(fresh(postgres), REPOSITORY)
    monkeypatch.setattr(databases, "BUSY_SECONDS", 0.05)
    with catalog._writing():
        assert catalog.run_ids() == set(), "readers never wait"
        with pytest.raises(TransientError, match="in use by other processes"):
            catalog.add([run("r1", repository=REPOSITORY)])
    catalog.add([run("r1", repository=REPOSITORY)])


def test_a_statement_that_takes_too_long_is_ended_and_the_options_of_the_url_hold_too(postgres: Postgres) -> None:
    url = fresh(postgres).engine.url.set(drivername="postgresql")
    own = url.update_query_dict({"options": "-c statement_timeout=7000 -c search_path=mine"})
    for place, expected in ((url, ("1min", '"$user", public')), (own, ("7s", "mine"))):
        with PostgresServer(place.render_as_string(hide_password=False)).engine.connect() as connection:
            shown = [
                connection.exec_driver_sql(f"SHOW {name}").scalar() for name in ("statement_timeout", "search_path")
            ]
        assert tuple(shown) == expected
    catalog = Catalog(PostgresServer(str(url)), REPOSITORY)

    def sleep() -> None:
        with catalog.reading() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 50")
            connection.exec_driver_sql("SELECT pg_sleep(60)")

    with pytest.raises(TransientError, match="statement timeout") as caught:
        sleep()
    assert "statement_timeout%3D300s" in caught.value.hint


def test_a_value_that_does_not_fit_and_a_standby_are_no_matter_of_rights(postgres: Postgres) -> None:
    catalog = Catalog(fresh(postgres), REPOSITORY)
    with pytest.raises(PermanentError, match="out of range") as caught:
        catalog.add([run("r1", repository=REPOSITORY), segment("r1", retries=1 << 70)])
    assert "please report this" in caught.value.hint
    with pytest.raises(PermanentError, match="read-only") as caught, catalog.reading() as connection:
        connection.exec_driver_sql("DELETE FROM runs")
    assert "primary" in caught.value.hint


def test_a_connection_that_the_server_ends_may_be_tried_again(postgres: Postgres) -> None:
    database = fresh(postgres)
    catalog = Catalog(database, REPOSITORY)
    with pytest.raises(TransientError, match="terminating connection"), catalog.reading() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
    assert catalog.run_ids() == set()


def test_a_user_without_rights_is_told_what_to_give_it(postgres: Postgres) -> None:
    database = fresh(postgres)
    with psycopg.connect(str(database.engine.url.set(drivername="postgresql")), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN")
    url = f"postgresql://guest@127.0.0.1:{postgres.port}/{database.engine.url.database}"
    with pytest.raises(PermanentError, match="permission denied") as caught:
        Catalog(PostgresServer(url), REPOSITORY)
    assert "rights" in caught.value.hint
    Catalog(database, REPOSITORY)
    with pytest.raises(PermanentError, match="permission denied"):
        Catalog(PostgresServer(url), REPOSITORY)


def test_a_server_that_is_away_passes_and_its_password_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "secret").chmod(0o600)
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        port = nobody.getsockname()[1]
        text = f"catalog: {{url: 'postgresql://cellar@127.0.0.1:{port}/history', password: {{file: secret}}}}"
        config = parse_config(text, tmp_path / "vmcellar.yaml")
        database = database_of(config)
        assert database.engine.url.password == "hunter2"
        with pytest.raises(TransientError, match=f"postgresql://cellar@127.0.0.1:{port}/history: ") as caught:
            Catalog(database, REPOSITORY)
        (up,) = (each for each in CatalogCollector(lambda: Catalog(database, ""), []).collect() if "up" in each.name)
        (finding,) = check_catalog(config)
    assert [sample.value for sample in up.samples] == [0], "and may be 1 at the next scrape"
    assert (finding.status, finding.detail) == ("failed", caught.value.message)
    assert "hunter2" not in caught.value.message + str(caught.value.__cause__)
    assert "server runs" in caught.value.hint


def test_a_password_is_used(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    database = fresh(postgres)
    with psycopg.connect(str(database.engine.url.set(drivername="postgresql")), autocommit=True) as connection:
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        rules.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        connection.execute("CREATE ROLE locked LOGIN PASSWORD 'hunter2'")
        connection.execute(f'ALTER DATABASE "{database.engine.url.database}" OWNER TO locked')
    postgres.stop()
    postgres.start()  # reads the rules; a reload would be read at some time
    url = f"postgresql://locked@127.0.0.1:{postgres.port}/{database.engine.url.database}"
    monkeypatch.setenv("VMCELLAR_HISTORY", "hunter2")
    config = Config(catalog=CatalogPlace(url=url, password=SecretReference(environment="VMCELLAR_HISTORY")))
    assert "the next backup makes its tables" in next(check_catalog(config)).detail
    Catalog.of(config, b"r" * 16)
    assert "its tables are there" in next(check_catalog(config)).detail
    with pytest.raises(TransientError, match="password authentication failed") as caught:
        Catalog(PostgresServer(url, "wrong"), REPOSITORY)
    assert "wrong" not in caught.value.message


def test_the_statements_of_the_page_make_what_its_configuration_names(postgres: Postgres, tmp_path: Path) -> None:
    """docs/catalog.md: the SQL is run as it stands, and the role makes the tables by the configuration of the page. The
    server of the test has no certificate and asks for no password, so that part of the address is left out.
    """
    page = (ROOT / "docs" / "catalog.md").read_text()
    (statements,), (section,) = blocks(page, "sql"), blocks(page, "yaml")
    with psycopg.connect(f"postgresql://{USER}@127.0.0.1:{postgres.port}/postgres", autocommit=True) as connection:
        for statement in statements.encode().split(b";\n"):
            connection.execute(statement)
    text = re.sub(r"\?sslmode=\S+", "", section).replace("db.example", f"127.0.0.1:{postgres.port}")
    (tmp_path / "catalog.password").write_text("…\n")
    (tmp_path / "catalog.password").chmod(0o600)
    config = parse_config(text.replace("/etc/vmcellar", str(tmp_path)), tmp_path / "vmcellar.yaml")
    Catalog.of(config, b"r" * 16)
    assert "its tables are there" in next(check_catalog(config)).detail
