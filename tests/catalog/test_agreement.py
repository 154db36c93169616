"""A disk whose segments do not add up to it is found, once, and no analysis uses it; what nothing is known of stays."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from tests.catalog.rows import HOUR, START, point, segment
from vmcellar.analysis.history import history
from vmcellar.analysis.quality import quarantine
from vmcellar.catalog import agreement, copying
from vmcellar.catalog.agreement import SUMS, judge_segments
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.databases import Database, SqliteFile
from vmcellar.catalog.rebuild import rebuild

REPOSITORY = "ab" * 16
MIB = 1 << 20
NOW = START + 10 * HOUR
FIGURES = {
    "bytes_read": 8 * MIB,
    "bytes_zero": MIB,
    "bytes_changed": 8 * MIB,
    "bytes_known": 3 * MIB,
    "bytes_new": 4 * MIB,
    "bytes_stored": 2 * MIB,
    "chunks_known": 3,
}
"""Those of the disk of `point`."""


@pytest.fixture
def catalog(database: Database) -> Catalog:
    made = Catalog(database, REPOSITORY)
    rebuild(made, [point("web", hour) for hour in range(3)], NOW)
    return made


def judged(catalog: Catalog) -> list[bool]:
    return list(history(catalog)["segments_agree"])


def test_segments_that_add_up_and_disks_without_any_are_left_alone(catalog: Catalog) -> None:
    catalog.add([segment("run-web-1", **FIGURES)])
    assert judge_segments(catalog, NOW) == 0
    assert judged(catalog) == [True] * 3
    assert quarantine(history(catalog), NOW)[1].empty


@pytest.mark.parametrize("figure", SUMS)
def test_a_figure_that_does_not_sum_puts_the_disk_into_quarantine(catalog: Catalog, figure: str) -> None:
    catalog.add([segment("run-web-1", **{**FIGURES, figure: FIGURES[figure] - 1})])
    assert judge_segments(catalog, NOW) == 1
    assert judged(catalog) == [True, False, True]
    good, bad = quarantine(history(catalog), NOW)
    assert list(good["run_id"]) == ["run-web-0", "run-web-2"]
    assert list(bad["reasons"]) == ["the segments do not add up to the disk"]


def test_segments_are_as_many_as_the_disk_says(catalog: Catalog) -> None:
    nothing: dict[str, Any] = dict.fromkeys(FIGURES, 0)
    catalog.add([segment("run-web-1", **FIGURES), segment("run-web-1", 1, **nothing)])
    assert judge_segments(catalog, NOW) == 1


def test_two_segments_are_summed_and_other_disks_and_runs_do_not_count(catalog: Catalog) -> None:
    two = point("db", 5)
    disks = (two.disks[0], *(point("db", 5).disks))
    rebuild(catalog, [point("db", 5, disks=disks[:1])], NOW)
    half = {name: value // 2 for name, value in FIGURES.items()}
    rest = {name: value - half[name] for name, value in FIGURES.items()}
    with catalog.writing() as connection:
        connection.exec_driver_sql("UPDATE run_disks SET segments = 2 WHERE run_id = 'run-db-5'")
    catalog.add([segment("run-db-5", 0, **half), segment("run-db-5", 1, **rest), segment("run-web-1", **FIGURES)])
    catalog.add([segment("run-db-5", 0, target="vdb", **FIGURES)])
    assert judge_segments(catalog, NOW) == 0


def test_what_was_judged_is_read_once_and_a_run_that_was_noted_late_all_the_same(catalog: Catalog) -> None:
    wrong = {**FIGURES, "bytes_read": 0}
    assert judge_segments(catalog, NOW) == 0
    catalog.add([segment("run-web-1", **wrong)])
    assert judge_segments(catalog, NOW + agreement.AGAIN_SECONDS) == 1
    assert judge_segments(catalog, NOW + agreement.AGAIN_SECONDS) == 0, "it is noted already"
    assert judge_segments(catalog, NOW + 3 * agreement.AGAIN_SECONDS) == 0
    catalog.add([segment("run-web-2", **wrong)])
    assert judge_segments(catalog, NOW + 3 * agreement.AGAIN_SECONDS) == 0, "too long ago for a run that ends now"


def test_what_was_copied_in_is_judged_however_old_it_is(catalog: Catalog, tmp_path: Any) -> None:
    target = Catalog(SqliteFile(tmp_path / "other.sqlite"), REPOSITORY)
    judge_segments(target, NOW + 100 * agreement.AGAIN_SECONDS)
    catalog.add([segment("run-web-1", **{**FIGURES, "bytes_read": 0})])
    copying.copy(catalog, target)
    assert judge_segments(target, NOW + 100 * agreement.AGAIN_SECONDS) == 1


def test_a_disk_that_was_found_wrong_stays_so_in_a_copy(catalog: Catalog, tmp_path: Any) -> None:
    catalog.add([segment("run-web-1", **{**FIGURES, "bytes_read": 0})])
    judge_segments(catalog, NOW)
    target = Catalog(SqliteFile(tmp_path / "other.sqlite"), REPOSITORY)
    copying.copy(catalog, target)
    assert judged(target) == [True, False, True]


def test_a_look_that_is_stopped_has_judged_nothing(catalog: Catalog, database: Database) -> None:
    catalog.add([segment("run-web-1", **{**FIGURES, "bytes_read": 0})])

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    event.listen(database.engine, "commit", stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            judge_segments(catalog, NOW)
    finally:
        event.remove(database.engine, "commit", stop)
    assert judge_segments(catalog, NOW) == 1


def test_a_clock_that_was_ahead_hides_no_later_run(catalog: Catalog) -> None:
    judge_segments(catalog, NOW + 10 * 365 * 24 * HOUR)
    catalog.add([segment("run-web-1", **{**FIGURES, "bytes_read": 1})])
    assert judge_segments(catalog, NOW) == 1
