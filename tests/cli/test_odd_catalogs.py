"""Catalogs with one run, of an older version, of a newer one: what the analysis commands make of them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory

from tests.cli.conftest import Cellar, Cli
from vmcellar.analysis.source import load
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.databases import FILE, SqliteFile
from vmcellar.catalog.models import Run, RunDisk
from vmcellar.catalog.schema import HEAD, alembic_config
from vmcellar.config.load import load_config
from vmcellar.errors import PermanentError
from vmcellar.repository.repository import Repository

COMMANDS = (
    ("forecast",), ("anomalies",), ("advise", "--rpo", "8h"), ("advise", "--gains"), ("advise", "--storage"),
    ("capacity",), ("what-if", "--keep", "30d"), ("catalog", "show"), ("metrics",), ("slo",),
)  # fmt: skip
VERSIONS = ("v0001", "v0002", "v0003", "v0004", "v0005")


def catalog_of(cellar: Cellar) -> Catalog:
    config = load_config(cellar.config)
    return Catalog.of(config, Repository.open(config).id)


def one_run(catalog: Catalog, cellar: Cellar) -> None:
    """The one run that the catalog knows, an hour before the second point."""
    run = Run(
        id="r1", repository=catalog.repository, vm="web1", started=cellar.second.time - 3600,
        finished=cellar.second.time - 3500, kind="full", outcome="done",
    )  # fmt: skip
    names = ("bytes_read", "bytes_changed", "bytes_zero", "bytes_new", "bytes_stored")
    sizes: dict[str, Any] = dict.fromkeys(names, 1 << 20)
    catalog.add([run, RunDisk(run_id="r1", target="vda", size=1 << 30, tier="hot", chunks_known=0, **sizes)])


def new_rows(cellar: Cellar) -> sqlite3.Connection:
    """The rows of `one_run` in tables of this version."""
    path = cellar.folder / "new.sqlite"
    one_run(Catalog(SqliteFile(path), repository_of(cellar)), cellar)
    return sqlite3.connect(path)


def repository_of(cellar: Cellar) -> str:
    return Repository.open(load_config(cellar.config)).id.hex()


@pytest.fixture
def now(cellar: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcellar.cli.historyframe.time.time", lambda: cellar.second.time)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.usefixtures("now")
def test_a_catalog_with_one_run_gives_figures_or_reasons(cli: Cli, cellar: Cellar, words: tuple[str, ...]) -> None:
    one_run(catalog_of(cellar), cellar)
    for options in ((), ("--json",)) if words != ("metrics",) else ((),):
        done = cli(*words, *options)
        assert (done.code, "Traceback" in done.err) == (0, False), done.err
        if options:
            json.loads(done.out)
    if words == ("forecast",):
        assert "no forecast of web1 vda: 0.0 days of history; 3 weeks are needed" in done.err or "refused" in done.out
    if words == ("capacity",):
        assert "0 days of history on hot; 28 are needed" in done.out


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.usefixtures("now")
def test_an_older_catalog_is_read_as_a_new_one_with_its_rows(cli: Cli, cellar: Cellar, version: str) -> None:
    """Also by commands that only read."""
    config = load_config(cellar.config)
    database = SqliteFile(config.state / FILE)
    database.prepare()
    with database.engine.begin() as connection:
        command.upgrade(alembic_config(connection), version)
    new = new_rows(cellar)
    with closing(sqlite3.connect(database.path)) as raw, raw:
        for table in ("runs", "run_disks"):
            names = [row[1] for row in raw.execute(f"PRAGMA table_info({table})")]
            values = new.execute(f"SELECT {', '.join(names)} FROM {table}").fetchone()  # noqa: S608  (names of our own tables)
            raw.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", values)  # noqa: S608
    done = cli("catalog", "show", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"]["runs"] == 1
    for words in COMMANDS:
        assert "Traceback" not in cli(*words).err
    with closing(sqlite3.connect(config.state / FILE)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)


def test_every_version_is_tried(cellar: Cellar) -> None:
    with catalog_of(cellar).reading() as connection:
        script = ScriptDirectory.from_config(alembic_config(connection))
    assert {each.revision for each in script.walk_revisions()} == {*VERSIONS, HEAD}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.usefixtures("now")
def test_a_newer_catalog_is_refused_and_left_as_it_is(cli: Cli, cellar: Cellar, words: tuple[str, ...]) -> None:
    catalog = catalog_of(cellar)
    one_run(catalog, cellar)
    file = load_config(cellar.config).state / FILE
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = 'v9999'")
        raw.commit()
    done = cli(*words)
    if words[0] == "slo":
        assert done.code == 0, "it goes by the points"
    elif words[0] == "metrics":
        assert "vmcellar_up 0.0" in done.out
    else:
        assert (done.code, done.out) == (1, "")
        assert "is of version v9999, which this vmcellar does not know" in done.err
        assert "use the newer vmcellar that made it" in done.err
    with closing(sqlite3.connect(file)) as raw:
        assert raw.execute("SELECT count(*) FROM runs").fetchone() == (1,)


def test_a_notebook_says_that_a_catalog_is_newer(cellar: Cellar) -> None:
    catalog_of(cellar)
    with closing(sqlite3.connect(load_config(cellar.config).state / FILE)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = 'v9999'")
        raw.commit()
    with pytest.raises(PermanentError, match="version v9999"):
        load(cellar.config)


@pytest.mark.parametrize("words", [("forecast",), ("anomalies",), ("what-if", "--keep", "30d"), ("catalog", "show")])
@pytest.mark.usefixtures("now")
def test_a_catalog_that_takes_no_writes_may_be_looked_at(
    cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """A standby, a role that may only read, a full disk."""
    one_run(catalog_of(cellar), cellar)

    def refuse(_catalog: Catalog) -> None:
        raise PermanentError("catalog db: cannot execute UPDATE in a read-only transaction")

    monkeypatch.setattr(Catalog, "writing", refuse)
    done = cli(*words)
    assert (done.code, "were not compared with their segments: catalog db: cannot" in done.err) == (0, True)
