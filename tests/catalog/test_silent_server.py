"""A PostgreSQL that takes a connection and then says nothing holds nobody up, whoever waits for it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.postgres import Postgres
from tests.catalog.conftest import fresh
from tests.upkeep.world import World
from vmcellar.catalog import patience
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.databases import STATEMENT_SECONDS, PostgresServer
from vmcellar.config.catalogplace import CatalogPlace
from vmcellar.config.model import Config
from vmcellar.errors import TransientError
from vmcellar.quality import proving
from vmcellar.repository import evidence
from vmcellar.repository.evidence import Check, Evidence

REPOSITORY = "ab" * 16


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server whose kernel takes connections, and of which no process reads; given up as soon as may be."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"postgresql://cellar@127.0.0.1:{listening.getsockname()[1]}/history?connect_timeout=2"


def test_a_server_that_takes_connections_and_says_nothing_is_given_up(silent: str) -> None:
    with pytest.raises(TransientError, match="timeout expired") as caught:
        Catalog(PostgresServer(silent), REPOSITORY)
    assert "check that the server runs" in caught.value.hint


def test_evidence_is_written_though_the_catalogs_server_says_nothing(
    silent: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "judge", lambda found: found)  # Great Expectations takes ten seconds to load
    config = Config(catalog=CatalogPlace(url=silent))
    with ThreadPoolExecutor(2) as pool:
        world = World.make(tmp_path, pool)
        host = world.host()
        point = world.back_up(host, {0: 1})
        check = Check("boots", "yes", "yes", ok=True)
        proving.record(host, config, Evidence(point.id, "web", "drill", "passed", world.now, "h", (check,)))
        (written,) = evidence.names(host.tier)
        host.close()
    assert (written.point, written.verdict) == (point.id, "passed")
    assert f"evidence about {point.id} is not in the catalog" in caplog.text
    assert "timeout expired" in caplog.text


def test_a_server_that_stops_in_the_midst_of_its_work_is_given_up(postgres: Postgres) -> None:
    catalog = Catalog(fresh(postgres), REPOSITORY)

    def ask() -> None:
        with catalog.reading() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, patience.PatientConnection)
            assert driver.silence == STATEMENT_SECONDS + patience.GRACE_SECONDS
            backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            os.kill(backend, signal.SIGSTOP)
            driver.silence = 0.6
            try:
                connection.exec_driver_sql("SELECT 1")
            finally:
                os.kill(backend, signal.SIGCONT)

    with pytest.raises(TransientError, match="gave no answer for 1 s") as caught:
        ask()
    assert "check that the server runs" in caught.value.hint
    assert catalog.run_ids() == set(), "the next one is asked anew"


def test_who_wants_no_limit_of_a_statement_has_no_limit_of_patience(postgres: Postgres) -> None:
    url = fresh(postgres).engine.url.set(drivername="postgresql")
    for limit, expected in (("0", None), ("7min", 420 + patience.GRACE_SECONDS)):
        place = url.update_query_dict({"options": f"-c statement_timeout={limit}"})
        with PostgresServer(place.render_as_string(hide_password=False)).engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, patience.PatientConnection)
            assert driver.silence == expected
