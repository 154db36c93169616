"""The history as Parquet files: in parts it is what it is as a whole, whatever the database and the order of a file."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from pyarrow import parquet

from tests.catalog.filled import REPOSITORY, fill
from tests.catalog.rows import HOUR, START, point, run
from vmcellar.analysis import exports, history
from vmcellar.analysis.exports import export, history_in_parts, last_start, read_history
from vmcellar.analysis.quality import quarantine
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.analysis.whatif import Scenario, joined, outcome, past_of
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.databases import Database
from vmcellar.catalog.rebuild import rebuild
from vmcellar.config.prices import Prices
from vmcellar.errors import UsageError

VMS = ("web", "db", "Ärger", "z", "Z")
EMPTY = {"runs": 0, "history": 0, "points": 0, "stages": 0, "segments": 0, "evidence": 0}


@pytest.fixture
def catalog(database: Database) -> Catalog:
    made = Catalog(database, REPOSITORY)
    fill(made)
    rebuild(made, [point(vm, hour) for vm in VMS for hour in range(5)], START)
    made.add([run(f"failed-{vm}", vm=vm, repository=REPOSITORY, outcome="failed", started=START + HOUR) for vm in VMS])
    return made


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs at once, and two rows of a query or a file."""
    for module in (exports, history):
        monkeypatch.setattr(module, "PART", 3)
        monkeypatch.setattr(module, "_ROWS", 2)


@pytest.mark.usefixtures("small_parts")
def test_each_table_is_written_in_parts_as_it_is_read_as_a_whole(catalog: Catalog, tmp_path: Path) -> None:
    rows = export(catalog, tmp_path / "out")
    for table, count in rows.items():
        file = tmp_path / "out" / f"{table}.parquet"
        whole = getattr(history, table)(catalog)
        assert count == len(whole) > 0, table
        found = read_history(file) if table == "history" else pd.read_parquet(file)
        if "vm" in whole.columns:  # by name, where a server sorts by its language
            whole, found = (each.sort_values("vm", kind="stable", ignore_index=True) for each in (whole, found))
        pd.testing.assert_frame_equal(found, whole, obj=table)
    for table in ("history", "runs", "stages", "points"):
        groups = parquet.ParquetFile(tmp_path / "out" / f"{table}.parquet").metadata.num_row_groups
        assert groups >= len(VMS), "a part is a group of rows"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{table}.parquet" for table in rows}


def test_an_export_of_nothing_has_every_file_and_column(database: Database, tmp_path: Path) -> None:
    empty = Catalog(database, REPOSITORY)
    assert export(empty, tmp_path).items() >= EMPTY.items()
    for table in EMPTY:
        assert list(pd.read_parquet(tmp_path / f"{table}.parquet")) == list(getattr(history, table)(empty))
    pd.testing.assert_frame_equal(read_history(tmp_path / "history.parquet"), history.empty_history())
    assert list(history_in_parts(tmp_path / "history.parquet")) == []
    with pytest.raises(UsageError, match="tells of no run"):
        last_start(tmp_path / "history.parquet")


def test_a_file_stays_whole_when_its_successor_does_not_come_about(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(catalog, tmp_path)
    before = read_history(tmp_path / "history.parquet")

    def full_disk(_writer: object, _table: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parquet.ParquetWriter, "write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(catalog, tmp_path)
    pd.testing.assert_frame_equal(read_history(tmp_path / "history.parquet"), before)
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".new")]


@pytest.fixture(scope="module")
def made_up() -> pd.DataFrame:
    return generate(replace(TUNING, vms=7, days=40, every_hours=(6,))).frame


@pytest.mark.parametrize("order", ["sorted", "by time", "of an older version"])
def test_a_file_in_parts_is_the_whole_one_each_vm_in_one_part(
    made_up: pd.DataFrame, order: str, tmp_path: Path
) -> None:
    file = tmp_path / "history.parquet"
    frame = made_up if order == "sorted" else made_up.sort_values("started", kind="stable")
    if order == "of an older version":
        frame = frame.drop(columns="segments_agree").astype({"vm": "object", "disk": "object"})
    frame.to_parquet(file, index=False, row_group_size=100)
    whole = read_history(file)
    assert last_start(file) == whole["started"].max()
    counts = whole["vm"].value_counts()
    parts = list(history_in_parts(file, 400))
    assert len(parts) > 2
    assert all(len(part) <= max(400, counts.max()) for part in parts)
    words = dict.fromkeys(whole.select_dtypes("category").columns, "object")
    together = pd.concat([part.astype(words) for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(together, whole.astype(words))
    assert sum(part["vm"].astype("object").nunique() for part in parts) == len(counts)


def test_what_a_scenario_comes_to_is_the_same_in_parts(made_up: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "history.parquet"
    made_up.to_parquet(file, index=False, row_group_size=100)
    at = last_start(file)
    pasts = [past_of(quarantine(part, at.timestamp())[0], at) for part in history_in_parts(file, 400)]
    scenario, prices = Scenario("a", 14.0, (("hot", 0.0),), 2.0, 1e7), {"hot": Prices(gb_month=0.1)}
    whole = quarantine(read_history(file), at.timestamp())[0]
    assert len(pasts) > 2
    assert outcome(joined(pasts), scenario, prices) == outcome(past_of(whole, at), scenario, prices)


def test_a_file_that_is_no_history_is_named(catalog: Catalog, tmp_path: Path) -> None:
    export(catalog, tmp_path)
    (tmp_path / "none").write_text("no parquet")
    for name, why in (("none", "magic bytes"), ("points.parquet", "no column"), ("missing", "No such file")):
        for read in (read_history, last_start, lambda file: list(history_in_parts(file))):
            with pytest.raises(UsageError, match=why):
                read(tmp_path / name)
