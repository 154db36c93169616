"""`catalog copy`: rows come over between a file and PostgreSQL, nothing is overwritten, a stop costs nothing."""

from __future__ import annotations

import socket
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from tests.catalog.conftest import fresh
from tests.catalog.filled import REPOSITORY, fill, same_rows
from tests.catalog.rows import START, point, run, segment
from vmcellar.analysis.history import stages
from vmcellar.catalog import copying
from vmcellar.catalog.catalog import Catalog, repositories
from vmcellar.catalog.databases import FILE, Database, SqliteFile
from vmcellar.catalog.models import Anomaly, Stage
from vmcellar.catalog.rebuild import rebuild
from vmcellar.errors import PermanentError, TransientError, UsageError

OTHER = "cd" * 16


@pytest.fixture(params=["file to server", "server to file"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Database, Database]:
    """Where a site comes from and where it goes; both empty."""
    places: tuple[Database, Database] = SqliteFile(tmp_path / FILE), fresh(request.getfixturevalue("postgres"))
    return places if request.param == "file to server" else places[::-1]


@pytest.fixture
def target(tmp_path: Path) -> Catalog:
    return Catalog(SqliteFile(tmp_path / "target.sqlite"), REPOSITORY)


@pytest.fixture
def source(tmp_path: Path) -> Catalog:
    return Catalog(SqliteFile(tmp_path / "source.sqlite"), REPOSITORY)


def test_all_rows_of_the_repository_come_over(pair: tuple[Database, Database]) -> None:
    source, target = (Catalog(place, REPOSITORY) for place in pair)
    fill(source)
    done = copying.copy(copying.open_source(pair[0], target), target)
    same_rows(source, target)
    assert done.added == source.counts()
    again = copying.copy(source, target)
    own = sum(count for name, count in source.counts().items() if name not in ("run_disks", "stages", "segments"))
    assert (again.added, again.there, again.other, again.better) == (Counter(), own, 0, 0)
    same_rows(source, target)
    Catalog(pair[0], OTHER).add([run("theirs", repository=OTHER)])
    assert copying.copy(source, target).added == {}
    assert repositories(pair[1]).keys() == {REPOSITORY}


def test_no_batch_sorts_all_rows(source: Catalog, target: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 87,000 batches of a large catalog did."""
    monkeypatch.setattr(copying, "BATCH", 2)
    fill(source)
    asked: list[tuple[str, Any]] = []

    @event.listens_for(source._database.engine, "before_cursor_execute")
    def _asks(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        asked.append((statement, values))

    copying.copy(source, target)
    batches = [each for each in asked if "ORDER BY" in each[0]]
    assert len(batches) > 10
    with closing(sqlite3.connect(source.name)) as raw:
        plans = {row[3] for each in batches for row in raw.execute(f"EXPLAIN QUERY PLAN {each[0]}", each[1])}
    assert not [plan for plan in plans if "TEMP B-TREE" in plan or "_by_" in plan]


def test_what_is_there_stays_and_what_only_points_told_gets_better(source: Catalog, target: Catalog) -> None:
    points = [point("web", hour) for hour in range(2)]
    rebuild(source, points, START)
    own = {"repository": REPOSITORY, "started": START, "warnings": ["seen by the run"]}
    source.add([run(points[0].run_id, **own), segment(points[0].run_id, retries=3)])
    source.add([Stage(run_id=points[0].run_id, target="vda", stage="export", seconds=7.0)])
    rebuild(target, points, START + 1)
    values: dict[str, Any] = dict.fromkeys(("began", "at", "last", "noted"), START)
    values |= {"vm": "web", "kind": "stuck", "disks": "vda", "score": 9.0, "text": "x", "repository": REPOSITORY}
    source.add([Anomaly(id="a1", **values)])
    target.add([Anomaly(id="a1", **values, judged=START + 9, verdict="known")])
    done = copying.copy(source, target)
    assert (done.better, done.other) == (1, 1)
    assert [row.verdict for row in target.anomalies()] == ["known"], "what was judged since stays"
    assert source.counts() == target.counts()
    assert list(stages(target)["seconds"]) == list(stages(source)["seconds"])
    with target.reading() as connection:
        told = connection.exec_driver_sql("SELECT recorded_by, warnings FROM runs ORDER BY recorded_by").fetchall()
    assert [row[0] for row in told] == ["point", "run"]
    assert "seen by the run" in told[1][1]


def test_what_was_stopped_is_whole_and_goes_on(
    source: Catalog, target: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild(source, [point("web", hour) for hour in range(7)], START)
    monkeypatch.setattr(copying, "BATCH", 3)
    plain, times = copying._insert, 0

    def dies(*arguments: Any) -> None:
        nonlocal times
        times += 1
        if times == 6:  # in the midst of the second batch of runs
            raise KeyboardInterrupt
        plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(copying, "_insert", dies)
        with pytest.raises(KeyboardInterrupt):
            copying.copy(source, target)
    there = target.counts()
    assert (there["runs"], there["run_disks"], there["stages"], there["points"]) == (3, 3, 3, 0)
    assert copying.copy(source, target).there == 3
    same_counts = source.counts()
    assert target.counts() == same_counts
    assert same_counts["points"] == 7


def test_what_is_no_other_catalog_is_refused_and_left_as_it_is(target: Catalog, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the one that is in use"):
        copying.open_source(SqliteFile(tmp_path / "target.sqlite"), target)
    with pytest.raises(PermanentError, match="holds no catalog"):
        copying.open_source(copying.place_of(str(tmp_path / "none")), target)
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").touch()
    with pytest.raises(PermanentError, match="holds no catalog"):
        copying.open_source(copying.place_of(str(tmp_path / "empty")), target)
    (tmp_path / "text").write_text("no database" * 1000)
    with pytest.raises(PermanentError, match="not a database") as caught:
        copying.open_source(copying.place_of(str(tmp_path / "text")), target)
    assert "--from" in caught.value.hint
    assert "move it away" not in caught.value.hint, "it may be anything"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://", "must be like postgresql://USER@HOST:PORT/DATABASE"),
        ("postgresql://cellar@db", "must be like postgresql://USER@HOST:PORT/DATABASE"),
        ("postgres://cellar@db/history", "must be like postgresql://USER@HOST:PORT/DATABASE"),
        ("mysql://cellar@db/history", "must be like postgresql://USER@HOST:PORT/DATABASE"),
        ("postgresql://cellar@db:five/history", "port must be a number"),
        ("postgresql://cellar:hunter2@db/history", "holds a password"),
    ],
)
def test_a_url_that_names_no_catalog_is_said_to_be_so(url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        copying.place_of(url)
    assert "~/.pgpass" in caught.value.hint
    assert "hunter2" not in str(caught.value)


def test_a_source_that_is_away_or_misnamed_is_told_by_what_the_user_typed(target: Catalog) -> None:
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        url = f"postgresql://cellar@127.0.0.1:{nobody.getsockname()[1]}/history"
        with pytest.raises(TransientError, match="history: ") as caught:
            copying.open_source(copying.place_of(url), target)
        assert caught.value.hint == "check that the server runs, and what --from names"
        with pytest.raises(PermanentError, match="nosuch") as caught_too:
            copying.open_source(copying.place_of(f"{url}?nosuch=1"), target)
    assert caught_too.value.hint == "check what --from names"
