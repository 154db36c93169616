"""The catalog on SQLite and on PostgreSQL: migrations, writers beside each other, what a damaged or foreign one gives,
rebuilding.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, inspect, text

from tests.catalog.rows import START, point, run, segment
from tests.restore.test_restore import damage, flip_one
from tests.upkeep.world import World
from vmcellar.catalog.catalog import Catalog, repositories
from vmcellar.catalog.databases import FILE, Database, SqliteFile
from vmcellar.catalog.models import Base, Run, Segment, Stage
from vmcellar.catalog.rebuild import point_row, rebuild, refresh
from vmcellar.catalog.schema import HEAD, alembic_config
from vmcellar.config.model import Config
from vmcellar.errors import PermanentError
from vmcellar.repository import evidence
from vmcellar.repository.evidence import Check
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.writeahead import write_ahead

REPOSITORY = b"r" * 16


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database, REPOSITORY.hex())


def test_the_migrations_make_the_tables_of_the_models(database: Database) -> None:
    database.prepare()
    with database.engine.begin() as connection:
        command.upgrade(alembic_config(connection), "head")
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert ScriptDirectory.from_config(alembic_config(connection)).get_current_head() == HEAD


def test_a_new_catalog_has_what_the_migrations_make(database: Database, migrated: Database) -> None:
    """Tables, columns, keys and indexes, and the note of the version."""
    migrated.prepare()
    with migrated.engine.begin() as connection:
        command.upgrade(alembic_config(connection), "head")
        wanted = structure(connection)
    with Catalog(database, REPOSITORY.hex()).reading() as connection:
        assert structure(connection) == wanted


def structure(connection: Connection) -> dict[str, object]:
    """Of each table, what the database itself says of it; the rows of Alembic's."""
    seen = inspect(connection)
    found: dict[str, object] = {"rows": connection.execute(text("SELECT * FROM alembic_version")).all()}
    for table in seen.get_table_names():
        columns = {
            each["name"]: (str(each["type"]), each["nullable"], each["default"]) for each in seen.get_columns(table)
        }
        indexes = {each["name"]: (each["column_names"], each["unique"]) for each in seen.get_indexes(table)}
        found[table] = columns, indexes, seen.get_pk_constraint(table), seen.get_foreign_keys(table)
    return found


def test_tables_of_somebody_else_are_not_taken_for_a_new_catalog(database: Database) -> None:
    database.prepare()
    with database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE runs (id INTEGER)")
    with pytest.raises(PermanentError):
        Catalog(database, REPOSITORY.hex())
    with database.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["runs"]


def test_a_new_catalog_is_made_without_alembic(tmp_path: Path) -> None:
    """Speed, held by its cause: the first backup of a host would wait for it at its end."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from vmcellar.catalog.catalog import Catalog\n"
        "from vmcellar.catalog.databases import SqliteFile\n"
        "Catalog(SqliteFile(Path(sys.argv[1])), 'aa')\n"
        "sys.exit('alembic' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path / FILE], check=False).returncode == 0


def test_an_older_catalog_is_brought_up_to_date_with_its_rows(database: Database) -> None:
    database.prepare()
    with database.engine.begin() as connection:
        command.upgrade(alembic_config(connection), "v0001")
        connection.exec_driver_sql("INSERT INTO stages (run_id, target, stage, seconds) VALUES ('r1', '', 'export', 2)")
    with Catalog(database, REPOSITORY.hex()).reading() as connection:
        stage = connection.execute(Stage.__table__.select()).one()
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert (stage.run_id, stage.seconds, stage.retries) == ("r1", 2.0, None)


def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    Catalog.of(Config(state=tmp_path / "state"), REPOSITORY)
    assert (tmp_path / "state" / FILE).stat().st_mode & 0o077 == 0


def test_rows_of_other_repositories_are_not_its_own(catalog: Catalog, database: Database) -> None:
    assert repositories(database) == {}
    Catalog(database, (b"o" * 16).hex()).add([run("r1", repository=(b"o" * 16).hex())])
    catalog.add([run("r2", repository=REPOSITORY.hex())])
    assert catalog.run_ids() == {"r2"}
    assert catalog.counts()["runs"] == 1
    assert repositories(database) == {REPOSITORY.hex(): START, (b"o" * 16).hex(): START}


def test_a_row_is_written_again_in_its_place(catalog: Catalog) -> None:
    for outcome in ("failed", "done"):
        catalog.add([run("r1", repository=REPOSITORY.hex(), outcome=outcome), run("r2", repository=REPOSITORY.hex())])
        catalog.add([segment("r1", number, retries=number) for number in range(1, 520)])  # more than one statement's
    catalog.add([segment("r1", 0), segment("r1", 520), segment("r1", 0, retries=9)])
    with catalog.reading() as connection:
        runs = sorted((row.id, row.outcome) for row in connection.execute(Run.__table__.select()))
        retries = {row.number: row.retries for row in connection.execute(Segment.__table__.select())}
    assert runs == [("r1", "done"), ("r2", "done")]
    assert retries == {0: 9, **{number: number for number in range(1, 520)}, 520: 0}


def test_a_reader_sees_one_state_while_others_write(catalog: Catalog) -> None:
    with catalog.reading() as connection:
        before = connection.execute(Run.__table__.select()).all()
        catalog.add([run("r1", repository=REPOSITORY.hex())])
        assert connection.execute(Run.__table__.select()).all() == before == []
    assert catalog.run_ids() == {"r1"}


def test_many_writers_at_once_lose_nothing(database: Database) -> None:
    def write(number: int) -> None:
        rows = [run(f"r{number}-{i}", repository=REPOSITORY.hex()) for i in range(5)]
        Catalog(database, REPOSITORY.hex()).add([*rows, run("both", repository=REPOSITORY.hex())])

    with ThreadPoolExecutor(6) as pool:  # the first one of them makes the tables
        list(pool.map(write, range(12)))
    assert len(Catalog(database, REPOSITORY.hex()).run_ids()) == 61


def test_a_new_file_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """Nothing but a change of the journal's mode fails at once where SQLite would wait otherwise."""
    told: list[str] = []

    class Busy:
        def execute(self, statement: str) -> None:
            told.append(statement)
            if len(told) < 3:
                raise sqlite3.OperationalError("database is locked")

    write_ahead(Busy())
    assert told == ["PRAGMA journal_mode = WAL"] * 3
    with closing(sqlite3.connect(tmp_path / "file")) as closed:
        pass
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        write_ahead(closed)


def test_all_rows_of_a_call_or_none(catalog: Catalog) -> None:
    broken = run("r2", repository=REPOSITORY.hex())
    broken.vm = None  # type: ignore[assignment]  # the database is to refuse it
    with pytest.raises(PermanentError, match=r"(?i)not.null"):
        catalog.add([run("r1", repository=REPOSITORY.hex()), broken])
    assert catalog.run_ids() == set()


def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(PermanentError, match=r"catalog\.sqlite: file is not a database") as caught:
        Catalog(SqliteFile(tmp_path / FILE), REPOSITORY.hex())
    assert "catalog rebuild" in caught.value.hint


def test_the_catalog_of_a_newer_vmcellar_is_refused(catalog: Catalog, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9999'")
    with pytest.raises(PermanentError, match="version v9999"):
        Catalog(database, catalog.repository)


def test_rebuild_adds_what_is_missing_and_deletes_nothing(catalog: Catalog) -> None:
    points = [point("web", hour) for hour in range(5)]
    catalog.add([run("lost", repository=REPOSITORY.hex(), outcome="failed")])
    first = rebuild(catalog, points[:3], now=1.0)
    second = rebuild(catalog, points, now=2.0)
    assert (first.added, second.added, second.points) == (3, 2, 5)
    assert catalog.run_ids() == {"lost", *(p.run_id for p in points)}
    assert catalog.counts() | {"stages": 5, "run_disks": 5, "points": 5} == catalog.counts()


def test_rebuild_knows_a_differential_by_its_parent(catalog: Catalog) -> None:
    full, unsure = point("web", 0), point("web", 3, verified=False)
    ids = {hour: point("web", hour).id for hour in range(6)}
    others = [point("web", hour, parent=ids[parent]) for hour, parent in ((1, 0), (2, 0), (4, 2), (5, 0))]
    other_vm = point("db", 5, parent=point("db", 4).id)
    rebuild(catalog, [full, unsure, *others, other_vm], now=1.0)
    with catalog.reading() as connection:
        kinds = {(row.vm, row.started): row.kind for row in connection.execute(Run.__table__.select())}
    web = [kind for (vm, _), kind in sorted(kinds.items(), key=lambda item: item[0][1]) if vm == "web"]
    assert web == ["full", "incremental", "differential", "incremental", "incremental", "differential"]
    assert [kind for (vm, _), kind in kinds.items() if vm == "db"] == ["incremental"]


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
        damage(file, flip_one)
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
        patch.setattr(Catalog, "known_points", lambda *_: set())
        patch.setattr(Catalog, "known_runs", lambda *_: set())
        rebuild(catalog, points, now=2.0)
    assert len(catalog.run_ids()) == len(catalog.point_ids()) == 3


def test_what_comes_and_goes_while_points_are_listed_is_as_the_others_say(catalog: Catalog) -> None:
    """A backup that commits meanwhile has a point, one that a prune dropped meanwhile has none."""
    pruned, new = point("web", 0), point("web", 1)

    def listed() -> list[RestorePoint]:
        found = [pruned]
        catalog.add([point_row(catalog.repository, new)])
        catalog.note_gone([pruned.id], 1.5)
        return found

    rebuild(catalog, [pruned], now=1.0)
    known = catalog.standing_points()
    assert rebuild(catalog, listed(), now=2.0, known=known).gone == 0
    with catalog.reading() as connection:
        gone = {row.id: row.gone for row in connection.exec_driver_sql("SELECT id, gone FROM points")}
    assert gone == {pruned.id: 1.5, new.id: None}


BY_KEY = "SEARCH {0} USING INDEX sqlite_autoindex_{0}_1 (id=?)"


@pytest.mark.parametrize(
    ("asks", "plan"),
    [
        (lambda catalog: catalog.standing_points(), "SCAN points"),
        (lambda catalog: catalog.known_points(f"{number:032x}" for number in range(400)), BY_KEY.format("points")),
        (lambda catalog: catalog.known_runs(f"{number:032x}" for number in range(400)), BY_KEY.format("runs")),
    ],
    ids=["standing", "points", "runs"],
)
def test_no_question_looks_up_every_row_by_an_index(
    tmp_path: Path, asks: Callable[[Catalog], set[str]], plan: str
) -> None:
    """With a year of many VMs a rebuild asked the catalog for each 500 points by looking up millions of others."""
    database = SqliteFile(tmp_path / FILE)
    catalog = Catalog(database, REPOSITORY.hex())
    asked: list[tuple[str, Any]] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def _asks(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        asked.append((statement, values))

    assert asks(catalog) == set()
    ((statement, values),) = [each for each in asked if f"FROM {plan.split()[1]}" in each[0]]
    with closing(sqlite3.connect(database.path)) as raw:
        assert [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", values)] == [plan]


def test_refresh_asks_what_is_known_before_it_lists(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(2) as pool:
        (tmp_path / "world").mkdir()
        host = World.make(tmp_path / "world", pool).host()
    late = point("web", 1)

    def listed() -> list[RestorePoint]:
        catalog.add([point_row(catalog.repository, late)])
        return []

    monkeypatch.setattr(host, "readable_points", listed)
    assert refresh(catalog, host).gone == 0
    host.close()
