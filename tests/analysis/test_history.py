"""The frame that every analysis works on."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from tests.catalog.rows import HOUR, MIB, START, point, run, segment
from vmcellar.analysis.history import (
    HISTORY,
    conform,
    empty_history,
    held_before,
    history,
    in_parts,
    points,
    proved,
    recent,
    runs,
    segments,
    stages,
    there,
)
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.models import Evidence
from vmcellar.catalog.rebuild import rebuild
from vmcellar.config.model import Config


def test_an_empty_history_has_every_column_in_its_dtype() -> None:
    assert {name: str(dtype) for name, dtype in empty_history().dtypes.items()} == dict(HISTORY)


def test_conform_names_the_columns_that_are_missing() -> None:
    with pytest.raises(KeyError, match="bytes_new, tier"):
        conform(empty_history().drop(columns=["tier", "bytes_new"]))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = Catalog.of(Config(state=tmp_path), b"r" * 16)
    rebuild(made, [point(vm, hour) for vm in ("web", "db") for hour in range(3)], now=START)
    made.add([run("failed-1", repository=made.repository, outcome="failed", started=START + 5 * HOUR)])
    made.add([segment("run-web-1")])
    return made


def test_a_history_has_a_row_per_vm_disk_and_run(catalog: Catalog) -> None:
    frame = history(catalog)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == dict(HISTORY)
    assert list(frame["vm"]) == ["db"] * 3 + ["web"] * 4
    row = frame[frame["run_id"] == "run-web-1"].iloc[0]
    assert row["started"] == pd.Timestamp(START + HOUR, unit="s", tz="UTC")
    assert (row["disk"], row["kind"], row["ok"], row["tier"], row["dedup_hits"]) == (
        "vda", "incremental", True, "hot", 3,
    )  # fmt: skip
    assert (row["ratio"], row["seconds"], row["seconds_held"], row["seconds_frozen"], row["entropy"]) == (
        2.0, 5.0, 3.0, 0.2, 5.5,
    )  # fmt: skip


def test_a_run_without_a_point_has_one_row_without_figures(catalog: Catalog) -> None:
    frame = history(catalog, "web")
    row = frame[~frame["ok"]].iloc[0]
    assert (row["run_id"], row["disk"], row["bytes_read"]) == ("failed-1", "", 0)
    assert row[["ratio", "seconds", "entropy"]].isna().all()


def test_a_history_may_be_of_one_vm_and_since_an_instant(catalog: Catalog) -> None:
    since = datetime.fromtimestamp(START + HOUR, UTC)
    assert list(history(catalog, "db", since)["run_id"]) == ["run-db-1", "run-db-2"]
    assert history(catalog, "none").equals(empty_history())


def test_a_run_tells_which_rpo_it_reached(catalog: Catalog) -> None:
    first, second, newest, failed = runs(catalog, "web").to_dict("records")
    assert first["superseded"] == second["finished"] == pd.Timestamp(START + HOUR + 5, unit="s", tz="UTC")
    assert (first["rpo_reached"], second["rpo_reached"]) == (HOUR + 5, HOUR + 5), "from its instant to the next commit"
    assert pd.isna(newest["superseded"])
    assert pd.isna(newest["rpo_reached"]), "it still ages"
    assert (failed["run_id"], failed["outcome"], failed["ok"]) == ("failed-1", "failed", False)
    assert pd.isna(failed["rpo_reached"])
    assert len(runs(catalog, "none")) == 0


def test_analyses_look_back_for_25_weeks_and_what_lies_before_is_summed(catalog: Catalog) -> None:
    now = START + 25 * 7 * 86400 + HOUR
    assert set(recent(catalog, now)["run_id"]) == {f"run-{vm}-{hour}" for vm in ("web", "db") for hour in (1, 2)} | {
        "failed-1"
    }
    later = now + 2 * HOUR
    held = held_before(catalog, later).sort_values(["vm", "goes"]).to_dict("records")
    day = pd.Timestamp(START, unit="s", tz="UTC").floor("D")
    assert held == [
        {"vm": vm, "goes": goes, "day": day, "size": 2.0 * MIB * count}
        for vm in ("db", "web")
        for goes, count in ((False, 1), (True, 2))
    ]
    catalog.mark_gone([], later)
    assert held_before(catalog, later).empty, "they are no more there"


def test_points_that_tell_of_restores_are_the_newest_and_those_with_evidence(catalog: Catalog) -> None:
    drilled = points(catalog, "db")["point"].iloc[0]
    where = catalog.repository
    catalog.add([Evidence(id="e", repository=where, vm="db", time=START, point_id=drilled, kind="drill", ok=True)])
    told = proved(catalog)
    every = points(catalog)
    assert told.equals(every[every["point"].isin(told["point"])].reset_index(drop=True))
    assert list(told["run_id"]) == ["run-db-0", "run-db-2", "run-web-2"]
    catalog.note_gone(every.loc[every["run_id"] != "run-web-1", "point"].tolist(), START)
    assert list(there(catalog)["run_id"]) == ["run-db-0", "run-db-2", "run-web-1", "run-web-2"], "and what is there"


def test_the_other_tables(catalog: Catalog) -> None:
    assert list(stages(catalog, "db")["seconds"]) == [2.0] * 3
    assert stages(catalog, "db")["retries"].isna().all(), "a point does not tell"
    (piece,) = segments(catalog).to_dict("records")
    assert (piece["vm"], piece["disk"], piece["segment"], piece["retries"]) == ("web", "vda", 0, 0)
    assert segments(catalog, "db").empty
    there = points(catalog, "web")
    assert list(there["kind"]) == ["full", "incremental", "incremental"]
    assert there["gone"].isna().all()


def test_a_history_in_parts_is_the_whole_one_each_vm_in_one_part(catalog: Catalog) -> None:
    whole = history(catalog)
    for rows in (1, 3, 1000):
        parts = list(in_parts(catalog, rows))
        assert len(parts) == (1 if rows == 1000 else whole["vm"].nunique())
        plain = [part.astype({"vm": "object"}) for part in parts]
        assert sum(part["vm"].nunique() for part in plain) == whole["vm"].nunique()
        joined = pd.concat(plain, ignore_index=True)
        assert list(joined["run_id"]) == list(whole["run_id"])
        assert joined["bytes_stored"].sum() == whole["bytes_stored"].sum()


def test_an_export_of_an_older_version_knows_no_segments(catalog: Catalog) -> None:
    whole = history(catalog)
    pd.testing.assert_frame_equal(conform(whole.drop(columns="segments_agree")), whole)
