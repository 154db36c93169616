"""`catalog rebuild`, `export`, `show` and `capacity` on a real repository."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.conftest import Cellar, Cli
from vmcellar.analysis.sample import TUNING, generate


def set_clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """The clock that histories are judged by."""
    monkeypatch.setattr("vmcellar.analysis.quality.time", SimpleNamespace(time=lambda: now))


def told(**figures: int) -> dict[str, object]:
    """What `catalog rebuild --json` says."""
    return {"points": 0, "added": 0, "gone": 0, "evidence": 0, "unreadable": {}} | figures


def test_rebuild_reads_the_history_back_and_show_tells_it(
    cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, cellar.second.time + 60)
    assert "no run is known" in cli("catalog", "show").err
    first = cli("catalog", "rebuild")
    assert first.code == 0, first.err
    assert "3 points in the repository: 3 added to the catalog, 0 noted as gone" in first.err
    assert "failed attempts, segments and the stages' times per disk are not known" in first.err
    assert json.loads(cli("catalog", "rebuild", "--json").out) == told(points=3)
    shown = json.loads(cli("catalog", "show", "--json").out)
    assert {vm["vm"]: (vm["runs"], vm["failed"]) for vm in shown["vms"]} == {"db1": (1, 0), "web1": (2, 0)}
    assert shown["quarantined"] == []
    assert "web1" in cli("catalog", "show").out


def test_show_names_the_rows_that_no_analysis_uses(cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, cellar.first.time - 86400)
    cli("catalog", "rebuild")
    shown = cli("catalog", "show").out
    assert "3 rows that no analysis uses" in shown
    assert shown.count("a clock was wrong") == 3
    assert len(json.loads(cli("catalog", "show", "--json").out)["quarantined"]) == 3


@pytest.mark.usefixtures("cellar")
@pytest.mark.usefixtures("later")
def test_rebuild_notes_points_that_a_prune_dropped(cli: Cli) -> None:
    cli("catalog", "rebuild")
    assert cli("prune", "--keep-last", "1").code == 0
    assert json.loads(cli("catalog", "rebuild", "--json").out) == told(points=2, gone=1)


def test_a_damaged_point_is_named_is_not_gone_and_ends_nothing(cli: Cli, cellar: Cellar) -> None:
    """As where a history was lost, and one record of the repository is damaged."""
    (file,) = cellar.folder.rglob(f"points/{cellar.first.id}")
    whole = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    first = cli("catalog", "rebuild")
    assert (first.code, "2 added to the catalog" in first.err) == (1, True)
    assert cellar.first.id in first.err
    assert "verify --all" in first.err
    file.write_bytes(whole)
    assert cli("catalog", "rebuild").code == 0
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = json.loads(cli("catalog", "rebuild", "--json").out)
    assert (again["points"], again["gone"], list(again["unreadable"])) == (2, 0, [cellar.first.id])


@pytest.mark.usefixtures("cellar")
@pytest.mark.parametrize("command", ["forecast", "anomalies", "advise"])
def test_a_catalog_without_a_run_is_said_to_be_the_reason(cli: Cli, command: str) -> None:
    done = cli(command)
    assert done.code == 0, done.err
    assert "there is no history to go by; `vmcellar catalog rebuild`" in done.err
    assert "there is no history" not in cli(command, "--sample", "1").err


def test_export_writes_parquet(cli: Cli, cellar: Cellar) -> None:
    cli("catalog", "rebuild")
    done = cli("catalog", "export", "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"]["history"] == 3
    assert (cellar.folder / "out" / "history.parquet").stat().st_size > 1000


@pytest.mark.usefixtures("cellar")
def test_capacity_says_that_it_does_not_know_what_other_hosts_add(cli: Cli) -> None:
    assert "3 points of the repository are not in" in cli("capacity", "--json").err
    assert cli("catalog", "rebuild").code == 0
    assert "are not in" not in cli("capacity").err


@pytest.mark.usefixtures("cellar")
def test_capacity_tells_what_is_used_and_why_there_is_no_forecast(cli: Cli) -> None:
    cli("catalog", "rebuild")
    (tier,) = json.loads(cli("capacity", "--json").out)
    assert tier["tier"] == "hot"
    assert tier["used"] > 3 << 20
    assert tier["full"] is None
    assert "days of history on hot" in tier["reason"]
    assert "hot" in cli("capacity").out


def test_what_if_compares_retention_and_tiers(cli: Cli) -> None:
    rules = ("--keep", "90d", "--keep", "30d", "--tiers", "hot", "--tiers", "hot,cold:14d")
    prices = ("--prices", "hot=0.1", "--prices", "cold=DEEP_ARCHIVE", "--sample", "1")
    found = json.loads(cli("what-if", *rules, *prices, "--json").out)
    assert [one["scenario"] for one in found] == [
        "90d on hot", "30d on hot", "90d on hot,cold:14d", "30d on hot,cold:14d",
    ]  # fmt: skip
    long, short, tiered, _ = found
    assert short["held"] < long["held"] == tiered["held"]
    assert tiered["bill"]["total"] < long["bill"]["total"]
    assert "90d on hot" in cli("what-if", *rules, *prices).out


def test_what_if_compares_bandwidths(cli: Cli) -> None:
    rates = ("--keep", "30d", "--bandwidth", "100MiB/s", "--bandwidth", "1MiB/s", "--sample", "1")
    fast, slow = json.loads(cli("what-if", *rates, "--json").out)
    assert (fast["scenario"], slow["rate"]) == ("30d on hot, 100MiB/s", 1 << 20)
    assert (fast["held"], fast["runs"]) == (slow["held"], slow["runs"])
    assert fast["busy"] < slow["busy"]
    assert fast["late"] < slow["late"]


def test_what_if_goes_by_all_of_the_history(cli: Cli, tmp_path: Path) -> None:
    frame = generate(replace(TUNING, seed=1, vms=2, days=200, newcomers=0.0, leavers=0.0)).frame
    frame.to_parquet(tmp_path / "history.parquet", index=False)
    (found,) = json.loads(cli("what-if", "--keep", "1y", "--history", str(tmp_path / "history.parquet"), "--json").out)
    assert found["held"] == frame.loc[frame["ok"], "bytes_stored"].sum(), "the fulls it began with are among it"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--keep", "soon"), "a time is a number"),
        (("--keep", "9d", "--tiers", "hot,warm:4d"), "no price is known of warm"),
        (("--keep", "9d", "--tiers", "hot:4d"), "must rise"),
        (("--keep", "9d", "--prices", "hot=cheap"), "not a price"),
        (("--keep", "9d", "--bandwidth", "100"), "a rate is a size per second"),
    ],
)
def test_what_if_refuses_what_it_cannot_read(cli: Cli, options: tuple[str, ...], why: str) -> None:
    done = cli("what-if", *options, "--sample", "1")
    assert done.code == 2
    assert why in done.err


@pytest.mark.usefixtures("cellar")
def test_copy_brings_the_rows_of_another_catalog(cli: Cli, cellar: Cellar) -> None:
    cli("catalog", "rebuild")
    refused = cli("catalog", "copy")
    assert (refused.code, "is the one that is in use" in refused.err) == (2, True)
    (cellar.folder / "state" / "catalog.sqlite").rename(cellar.folder / "old.sqlite")
    done = cli("catalog", "copy", "--from", "old.sqlite")
    assert done.code == 0, done.err
    assert "3 points, 3 run_disks, 3 runs" in done.err
    again = json.loads(cli("catalog", "copy", "--from", "old.sqlite", "--json").out)
    assert (again["added"], again["there"], again["other"]) == ({}, 6, 0)
    assert "web1" in cli("catalog", "show").out


def test_advice_on_storing_is_shown_and_what_came_of_it(
    cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, cellar.second.time + 60)
    cli("catalog", "rebuild")
    told = json.loads(cli("advise", "--storage", "--json").out)["proposals"]
    assert {"consolidation", "tier rule"} <= {one["subject"] for one in told}
    assert json.loads(cli("advise", "--gains", "--json").out) == {"gains": [], "storage": []}
    assert "no advice holds that was applied" in cli("advise", "--gains").err
