"""Bad rows of a history are set aside, each with its reason, and Great Expectations names the same ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.catalog.rows import HOUR, START, point, run
from vmcellar.analysis.history import HISTORY, history
from vmcellar.analysis.quality import Verdict, findings, quarantine, suite, validate
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.rebuild import rebuild
from vmcellar.config.model import Config

NOW = START + 100 * HOUR


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder: Path = tmp_path_factory.mktemp("catalog")
    catalog = Catalog.of(Config(state=folder), b"r" * 16)
    rebuild(catalog, [point("web", hour) for hour in range(24)], now=NOW)
    catalog.add([run("failed-1", repository=catalog.repository, outcome="failed", started=START + 30 * HOUR)])
    return history(catalog)


def planted(sound: pd.DataFrame, column: str, value: Any) -> pd.DataFrame:
    """The history with one value of its row 5 (of the run `run-web-5`) replaced."""
    frame = sound.copy()
    if str(frame[column].dtype) == "category":
        frame[column] = frame[column].astype("object")
    frame.loc[5, column] = value
    return frame


FAULTS = [
    ("run_id", "run-web-6", ["two rows of one run and disk"]),
    ("disk", "", ["a run with a point that does not name its VM, disk or kind"]),
    ("kind", "", ["a run with a point that does not name its VM, disk or kind"]),
    ("started", pd.Timestamp(NOW + 2 * HOUR, unit="s", tz="UTC"), ["a clock was wrong"]),
    ("started", pd.Timestamp("1970-01-01", tz="UTC"), ["a clock was wrong"]),
    ("started", pd.NaT, ["no start"]),
    ("started", pd.Timestamp(START + 6 * HOUR, unit="s", tz="UTC"), ["two runs of one disk at the same instant"]),
    ("bytes_size", 1, ["more changed than the disk is large"]),
    ("bytes_changed", 2 << 30, ["more changed than the disk is large"]),
    ("bytes_zero", 2 << 30, ["more zero than the disk is large"]),
    ("bytes_read", 1, ["more new bytes than were read"]),
    ("bytes_new", -1, ["bytes_new is negative"]),
    ("bytes_stored", 1 << 61, ["bytes_stored out of range"]),
    ("ratio", 9.0, ["ratio is not bytes_new / bytes_stored"]),
    ("segments_agree", False, ["the segments do not add up to the disk"]),
    ("entropy", 9.0, ["entropy is not within"]),
    ("seconds", -1.0, ["the run's time is negative"]),
    ("seconds_held", 3e6, ["the time that the VM was held"]),
    ("seconds_frozen", 7200.0, ["the time that the guest was frozen"]),
]


def test_a_sound_history_loses_no_row(sound: pd.DataFrame) -> None:
    good, bad = quarantine(sound, NOW)
    pd.testing.assert_frame_equal(good, sound)
    assert bad.empty
    assert [one for one in findings(sound, NOW) if one.rows] == []


@pytest.mark.parametrize(("column", "value", "reasons"), FAULTS, ids=lambda value: str(value)[:30])
def test_a_planted_fault_is_set_aside_with_its_reason(
    sound: pd.DataFrame, column: str, value: Any, reasons: list[str]
) -> None:
    good, bad = quarantine(planted(sound, column, value), NOW)
    assert len(good) + len(bad) == len(sound)
    assert 1 <= len(bad) <= 2, "the row, and of a pair both or one"
    assert all(reason in " ".join(bad["reasons"]) for reason in reasons)
    assert list(good.columns) == list(HISTORY)


def test_a_gap_is_told_but_loses_no_row(sound: pd.DataFrame) -> None:
    late = sound.copy()
    late.loc[late.index >= 20, "started"] += pd.Timedelta(hours=40)
    told = [one for one in findings(late, NOW) if one.rows]
    assert [(one.severity, one.rows, one.ok) for one in told] == [("warning", 1, False)]
    assert quarantine(late, NOW)[1].empty


def test_great_expectations_names_the_same_rows(sound: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GX_ANALYTICS_ENABLED", raising=False)
    frame = pd.concat([sound.assign(run_id=sound["run_id"] + f"-{i}", vm=f"vm{i}") for i in range(len(FAULTS))])
    for i, (column, value, _) in enumerate(FAULTS):
        if str(frame[column].dtype) == "category":
            frame[column] = frame[column].astype("object")
        row = (frame["vm"] == f"vm{i}") & frame["run_id"].str.startswith("run-web-5-")
        new: Any = f"{value}-{i}" if column == "run_id" else value
        frame.loc[row, column] = new
    verdict = validate(frame, NOW)
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false", "it reports nothing of its use to anybody"
    assert not verdict.ok
    ours = {one.reason: one.rows for one in findings(frame, NOW) if not one.ok}
    assert {reason: len(rows) for reason, rows in verdict.missed.items()} == ours
    assert len(ours) >= len({one for _, _, reasons in FAULTS for one in reasons}) - 1
    assert validate(sound, NOW).ok
    assert validate(frame, NOW, part=50) == verdict, "in parts, too; two rows of one run meet in one of them"


@pytest.mark.parametrize("part", [10, 1000])
def test_a_share_that_may_miss_a_rule_is_one_of_all_rows(sound: pd.DataFrame, part: int) -> None:
    several = pd.concat([sound.assign(run_id=sound["run_id"] + f"-{i}", vm=f"vm{i}") for i in range(10)])
    one_gap = several.reset_index(drop=True)
    own = (one_gap["vm"] == "vm3") & one_gap["ok"]
    late = own & (one_gap["started"] > one_gap.loc[own, "started"].iloc[20])
    one_gap.loc[late, "started"] += pd.Timedelta(hours=40)
    assert validate(one_gap, NOW, part) == Verdict(True, {}), "one in 250"
    assert len(validate(one_gap[one_gap["vm"] == "vm3"], NOW, part).missed) == 1, "one in 25"


def test_every_critical_expectation_has_a_planted_fault() -> None:
    told = [reason for _, _, reasons in FAULTS for reason in reasons]
    lonely = [
        rule["meta"]["reason"]
        for rule in suite()["expectations"]
        if rule["meta"]["severity"] == "critical" and not any(reason in rule["meta"]["reason"] for reason in told)
    ]
    out_of_range = {"bytes_size out of range", "bytes_read out of range"}
    assert set(lonely) <= out_of_range | {"bytes_changed is negative", "bytes_zero is negative"}
