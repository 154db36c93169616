"""RPO and RTO by hand-made histories."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from vmcellar.analysis import tables
from vmcellar.analysis.history import HISTORY, conform
from vmcellar.analysis.objectives import exposure, rpo, rto
from vmcellar.analysis.picks import worst_first

HOUR = 3600.0
BEGIN = pd.Timestamp("2026-03-01", tz="UTC")


def made(*runs: tuple[str, float, bool]) -> pd.DataFrame:
    """Runs of (VM, hour of the start, whether a point came of it); each takes half an hour and has two disks."""
    rows: list[dict[str, Any]] = [
        {
            **dict.fromkeys(HISTORY, 0), "run_id": f"{vm}-{hour}", "vm": vm, "disk": disk, "kind": "incremental",
            "started": BEGIN + pd.Timedelta(hours=hour), "ok": ok, "seconds": HOUR / 2, "tier": "hot",
        }
        for vm, hour, ok in runs
        for disk in ("vda", "vdb")
    ]  # fmt: skip
    return conform(pd.DataFrame(rows))


def at(hour: float) -> pd.Timestamp:
    return BEGIN + pd.Timedelta(hours=hour)


def test_a_point_is_the_newest_from_its_commit_to_the_next_one() -> None:
    teeth = exposure(made(("web", 0, True), ("web", 2, False), ("web", 4, True)), at(6))
    assert list(teeth["committed"]) == [at(0.5), at(4.5)]
    assert list(teeth["until"]) == [at(4.5), at(6)]
    assert list(teeth["worst"] / HOUR) == [4.5, 2.0]


def test_breaches_are_counted_and_timed() -> None:
    table = rpo(made(("db", 0, True), ("web", 0, True), ("web", 4, True)), {"web": 3 * HOUR}, at(6)).set_index("vm")
    web = table.loc["web"]
    assert (web["runs"], web["age"], web["worst"], web["breaches"]) == (2, 2 * HOUR, 4.5 * HOUR, 1)
    assert web["share"] == pytest.approx(1.5 / 5.5), "from hour 3 to 4.5, of hours 0.5 to 6"
    assert (table.loc["db", "breaches"], table.loc["db", "share"]) == (0, 0)
    assert pd.isna(table.loc["db", "target"])


def test_a_vm_without_a_good_run_is_there_and_the_worst_of_all() -> None:
    """Left out it would pass for well: one that fails each time, and one that has points but no run of late."""
    frame = made(("db", 0, True), ("fails", 0, False), ("fails", 1, False))
    table = rpo(frame, {"db": HOUR, "fails": HOUR}, at(6), ["old", "db"])
    assert dict(zip(table["vm"], table["runs"], strict=True)) == {"db": 1, "fails": 0, "old": 0}
    assert set(worst_first(table)[:2]) == {"fails", "old"}
    shown = tables.rpo(table).set_index("VM")["newest point"]
    assert (shown["fails"], shown["old"]) == ("none", "none")
    assert list(shown.index)[2] == "db"


def test_a_point_that_is_too_old_when_it_is_committed_is_a_breach_from_then_on() -> None:
    (share,) = rpo(made(("web", 0, True)), {"web": HOUR / 4}, at(1))["share"]
    assert share == 1.0


def test_the_time_to_restore_is_predicted_for_a_vm_that_was_never_drilled() -> None:
    points = pd.DataFrame(
        {
            "point": ["a", "b", "c"],
            "vm": ["db", "web", "web"],
            "time": [at(0), at(0), at(1)],
            "bytes_size": [10, 30, 40],
        }
    )
    drills = pd.DataFrame(
        {"point": ["b", "b", "a"], "vm": ["web", "web", "db"], "time": [at(2), at(3), at(1)], "kind": "drill",
         "ok": [True, True, False], "rto_seconds": [60.0, 90.0, 1.0]}
    )  # fmt: skip
    table = rto(drills, points).set_index("vm")
    assert (table.loc["web", "drills"], table.loc["web", "measured"]) == (2, 90.0)
    assert table.loc["web", "predicted"] == pytest.approx(2.5 * 40)
    assert table.loc["db", "drills"] == 0
    assert list(table["measured"].isna()) == [True, False], "a drill that failed measures nothing"
    assert table.loc["db", "predicted"] == pytest.approx(25)
    assert rto(drills[:0], points)["predicted"].isna().all()
