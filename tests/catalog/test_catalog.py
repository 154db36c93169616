"""The catalog in its file: migrations, writers beside each other, what a damaged or foreign file gives, rebuilding."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tests.catalog.rows import point, run
from tests.upkeep.world import World
from vmcellar.catalog.catalog import Catalog, _write_ahead
from vmcellar.catalog.models import Base, Run
from vmcellar.catalog.rebuild import rebuild, refresh
from vmcellar.catalog.schema import HEAD, alembic_config
from vmcellar.errors import PermanentError
from vmcellar.repository import evidence
from vmcellar.repository.evidence import Check

REPOSITORY = b"r" * 16


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.of(tmp_path, REPOSITORY)


def test_the_migrations_make_the_tables_of_the_models(catalog: Catalog) -> None:
    with catalog.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert ScriptDirectory.from_config(alembic_config(connection)).get_current_head() == HEAD


def test_it_is_for_its_owner_alone(catalog: Catalog) -> None:
    assert catalog.path.stat().st_mode & 0o077 == 0


def test_rows_of_other_repositories_are_not_its_own(catalog: Catalog, tmp_path: Path) -> None:
    Catalog.of(tmp_path, b"o" * 16).add([run("r1", repository=(b"o" * 16).hex())])
    catalog.add([run("r2", repository=REPOSITORY.hex())])
    assert catalog.run_ids() == {"r2"}
    assert catalog.counts()["runs"] == 1


def test_a_row_is_written_again_in_its_place(catalog: Catalog) -> None:
    for outcome in ("failed", "done"):
        catalog.add([run("r1", repository=REPOSITORY.hex(), outcome=outcome)])
    with catalog.reading() as connection:
        assert [row.outcome for row in connection.execute(Run.__table__.select())] == ["done"]


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(number: int) -> None:
        Catalog.of(tmp_path, REPOSITORY).add([run(f"r{number}-{i}", repository=REPOSITORY.hex()) for i in range(5)])

    with ThreadPoolExecutor(6) as pool:  # the first one of them makes the tables
        list(pool.map(write, range(12)))
    assert len(Catalog.of(tmp_path, REPOSITORY).run_ids()) == 60


def test_a_new_file_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """Nothing but a change of the journal's mode fails at once where SQLite would wait otherwise."""
    told: list[str] = []

    class Busy:
        def execute(self, statement: str) -> None:
            told.append(statement)
            if len(told) < 3:
                raise sqlite3.OperationalError("database is locked")

    _write_ahead(Busy())
    assert told == ["PRAGMA journal_mode = WAL"] * 3
    with closing(sqlite3.connect(tmp_path / "file")) as closed:
        pass
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        _write_ahead(closed)


def test_all_rows_of_a_call_or_none(catalog: Catalog) -> None:
    broken = run("r2", repository=REPOSITORY.hex())
    broken.vm = None  # type: ignore[assignment]  # the database is to refuse it
    with pytest.raises(PermanentError, match="NOT NULL"):
        catalog.add([run("r1", repository=REPOSITORY.hex()), broken])
    assert catalog.run_ids() == set()


def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(PermanentError, match=r"catalog\.sqlite: file is not a database") as caught:
        Catalog.of(tmp_path, REPOSITORY)
    assert "catalog rebuild" in caught.value.hint


def test_the_catalog_of_a_newer_vmcellar_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    with closing(sqlite3.connect(catalog.path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'v9999'")
    with pytest.raises(PermanentError, match="version v9999"):
        Catalog.of(tmp_path, REPOSITORY)


def test_rebuild_adds_what_is_missing_and_deletes_nothing(catalog: Catalog) -> None:
    points = [point("web", hour) for hour in range(5)]
    catalog.add([run("lost", repository=REPOSITORY.hex(), outcome="failed")])
    first = rebuild(catalog, points[:3], now=1.0)
    second = rebuild(catalog, points, now=2.0)
    assert (first.added, second.added, second.points) == (3, 2, 5)
    assert catalog.run_ids() == {"lost", *(p.run_id for p in points)}
    assert catalog.counts() | {"stages": 5, "run_disks": 5, "points": 5} == catalog.counts()


def test_rebuild_notes_what_is_gone_and_what_came_back(catalog: Catalog) -> None:
    points = [point("web", hour) for hour in range(3)]
    rebuild(catalog, points, now=1.0)
    assert rebuild(catalog, points[1:], now=2.0).gone == 1
    assert rebuild(catalog, points[1:], now=3.0).gone == 0, "it went once"
    with catalog.reading() as connection:
        gone = {row.id: row.gone for row in connection.exec_driver_sql("SELECT id, gone FROM points")}
    assert gone == {points[0].id: 2.0, points[1].id: None, points[2].id: None}
    rebuild(catalog, points, now=4.0)
    with catalog.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM points WHERE gone IS NOT NULL").scalar() == 0


def test_rebuild_leaves_what_a_run_wrote_itself(catalog: Catalog) -> None:
    made = point("web", 0)
    catalog.add([run(made.run_id, repository=REPOSITORY.hex(), error="seen by the run")])
    rebuild(catalog, [made], now=1.0)
    with catalog.reading() as connection:
        assert [row.error for row in connection.execute(Run.__table__.select())] == ["seen by the run"]


def test_refresh_reads_evidence_once_and_leaves_damaged_evidence_out(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(2) as pool:
        (tmp_path / "world").mkdir()
        world = World.make(tmp_path / "world", pool)
        host = world.host()
        made = world.back_up(host, {0: 1})
        drill = evidence.Evidence(
            point=made.id, vm="web", kind="drill", verdict="failed", time=world.now, host="h",
            checks=(Check("boots", "yes", "no", ok=False),), rto=90.0, seconds={"start": 2.0},
        )  # fmt: skip
        evidence.write(host, drill)
        damaged = evidence.write(host, drill)
        file = world.folder / "hot" / damaged.key
        file.chmod(0o600)
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        assert refresh(catalog, host).evidence == 1
        assert damaged.key in caplog.text
        assert refresh(catalog, host).evidence == 0
        host.close()
    with catalog.reading() as connection:
        (row,) = connection.exec_driver_sql(
            "SELECT vm, kind, ok, rto_seconds, seconds, detail FROM evidence"
        ).fetchall()
    assert tuple(row) == ("web", "drill", 0, 90.0, 2.0, "boots: expected yes, found no")


def test_a_backup_that_ends_while_the_catalog_is_rebuilt_does_no_harm(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [point("web", hour) for hour in range(3)]
    rebuild(catalog, points[:1], now=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "point_ids", lambda _: set())
        patch.setattr(Catalog, "run_ids", lambda _: set())
        rebuild(catalog, points, now=2.0)
    assert len(catalog.run_ids()) == len(catalog.point_ids()) == 3
