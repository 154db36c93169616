"""`forecast` and `anomalies` on a made-up history and on a Parquet file."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tests.cli.conftest import Cellar, Cli
from vmcellar.analysis import adapting
from vmcellar.analysis.history import conform, schedule_changes
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.catalog.catalog import Catalog
from vmcellar.config.load import load_config
from vmcellar.policy.timetable import job_entries, read_advised
from vmcellar.repository.repository import Repository


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "history.parquet"
    conform(generate(replace(TUNING, seed=3, vms=4, days=60, newcomers=0.0, leavers=0.0)).frame).to_parquet(path)
    return path


def test_a_forecast_of_a_file_names_model_and_next_run(cli: Cli, parquet: Path) -> None:
    done = cli("forecast", "office-0000", "--history", str(parquet))
    assert done.code == 0
    assert "MASE" in done.out
    assert "next run" in done.out
    told = json.loads(cli("forecast", "--history", str(parquet), "--json").out)
    assert {disk["vm"] for disk in told["disks"]} == {"office-0000", "nightly-0001", "daily-0002", "month-end-0003"}
    disk = told["disks"][0]
    assert len(disk["starts"]) == len(disk["bytes_median"]) == len(disk["bytes_low95"])
    assert all(low <= high for low, high in zip(disk["bytes_low95"], disk["bytes_high95"], strict=True))
    assert told["next_runs"][0]["seconds"]["low95"] <= told["next_runs"][0]["seconds"]["median"]


def test_anomalies_of_a_file_say_what_was_seen_and_how_often_that_is_false(cli: Cli, parquet: Path) -> None:
    frame = pd.read_parquet(parquet)
    rows = frame.index[frame["vm"] == "office-0000"][-3:]
    frame.loc[rows, "seconds_frozen"] = 40.0
    frame.to_parquet(parquet)
    done = cli("anomalies", "--history", str(parquet))
    assert done.code == 0
    assert "the guest was frozen for 40.0 s" in done.out
    assert "false alarms at most" in done.err
    told = json.loads(cli("anomalies", "--history", str(parquet), "--json").out)
    assert [one["kind"] for one in told["anomalies"]] == ["freeze"]


def test_a_sample_shows_both(cli: Cli) -> None:
    said = cli("anomalies", "--sample", "1").err
    assert "made-up" in said
    assert "not judged: growth-0013 vda: no good run for 1067 hours" in said
    assert "nightly-0001" in cli("forecast", "--sample", "1").out


def test_what_is_no_history_is_bad_use(cli: Cli, tmp_path: Path, parquet: Path) -> None:
    missing = cli("forecast", "--history", str(tmp_path / "none.parquet"))
    assert (missing.code, "none.parquet" in missing.err) == (2, True)
    text = tmp_path / "text.parquet"
    text.write_text("no parquet")
    assert cli("forecast", "--history", str(text)).code == 2
    pd.read_parquet(parquet).drop(columns=["bytes_changed"]).to_parquet(text)
    assert "bytes_changed" in cli("anomalies", "--history", str(text)).err
    unknown = cli("forecast", "web", "--history", str(parquet))
    assert (unknown.code, "web is not in this history" in unknown.err) == (1, True)
    assert cli("forecast").code == 2


def test_advice_is_shown_before_and_after_and_changes_nothing(cli: Cli, parquet: Path) -> None:
    done = cli("advise", "--history", str(parquet), "--rpo", "8h")
    assert done.code == 0
    assert "RPO breaches a year" in done.out
    assert "nothing was changed" in done.err
    told = json.loads(cli("advise", "--history", str(parquet), "--rpo", "8h", "--json").out)
    assert told["applied"] is False
    assert {one["vm"] for one in told["changes"]} == {"office-0000", "nightly-0001", "daily-0002", "month-end-0003"}
    assert told["after"]["breaches_a_year"] <= told["before"]["breaches_a_year"]
    assert all(len(one["after"]["starts"]) >= 4 for one in told["changes"])
    assert cli("advise", "--history", str(parquet), "--rpo", "soon").code == 2


def test_advice_keeps_the_windows_of_the_configuration(cli: Cli, parquet: Path, tmp_path: Path) -> None:
    path = tmp_path / "vmcellar.yaml"
    (tmp_path / "secret").write_text("a long enough passphrase")
    assert cli("init", "--tier", f"hot={tmp_path / 'hot'}", "--passphrase-file", str(tmp_path / "secret")).code == 0
    kept = path.read_text().split("\nbackups:")[0]
    path.write_text(
        f"{kept}\nbackups:\n  - name: night\n    domains: ['office-*']\n    rpo: 26h\n    window: 22:00-06:00\n"
    )
    told = json.loads(cli("advise", "--history", str(parquet), "--config", str(path), "--json").out)
    (office,) = [one for one in told["changes"] if one["vm"] == "office-0000"]
    offset = datetime.now().astimezone().utcoffset()
    assert offset is not None
    ahead = round(offset.total_seconds() / 60)
    assert all((start + ahead - 22 * 60) % 1440 < 8 * 60 for start in office["after"]["starts"])


@pytest.mark.parametrize(
    ("limits", "more", "expected"),
    [("{vms: 4}", (), 4), ("{vms: 4, shared: {san: 1, s3: 3}}", (), 1), ("{vms: 4}", ("--concurrent", "3"), 3)],
)
def test_advice_keeps_the_limits_of_the_configuration(
    cli: Cli,
    parquet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: str,
    more: tuple[str, ...],
    expected: int,
) -> None:
    (tmp_path / "secret").write_text("a long enough passphrase")
    assert cli("init", "--tier", f"hot={tmp_path / 'hot'}", "--passphrase-file", str(tmp_path / "secret")).code == 0
    path = tmp_path / "vmcellar.yaml"
    path.write_text(f"{path.read_text()}\nlimits: {limits}\n")
    asked: list[adapting.Wishes] = []
    advice_for = adapting.advice_for

    def watched(frame: pd.DataFrame, now: float, jobs: Any, wishes: adapting.Wishes, *more: Any) -> Any:
        asked.append(wishes)
        return advice_for(frame, now, jobs, wishes, *more)

    monkeypatch.setattr(adapting, "advice_for", watched)
    assert cli("advise", "--history", str(parquet), "--config", str(path), "--rpo", "8h", *more).code == 0
    assert [each.concurrent for each in asked] == [expected]


def test_advice_tells_what_a_tier_decided_and_what_runs_cost(cli: Cli, parquet: Path, tmp_path: Path) -> None:
    path = tmp_path / "vmcellar.yaml"
    path.write_text(
        f"tiers: {{hot: {{storage: {tmp_path}/hot, prices: {{put_1000: 5}}, bandwidth: 1KiB/s}}}}\n"
        "backups: [{name: all, schedule: '0 2 * * *', rpo: 8h, breach_cost: 0.001}]\n"
    )
    arguments = ("advise", "--history", str(parquet), "--config", str(path), "--budget", "3")
    told = json.loads(cli(*arguments, "--json").out)
    assert any("more a month, which they are not worth" in one["why"] for one in told["changes"])
    assert any(one["decided_by_a_tier"] for one in told["changes"])
    assert told["money_a_month"]["before"] > 0
    assert any("it alone writes" in said for said in told["conflicts"])
    done = cli(*arguments)
    assert "runs cost a month" in done.out
    assert "cannot be had" in done.err


def test_advice_becomes_schedules_with_a_trail_and_can_be_taken_back(
    cli: Cli, cellar: Cellar, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.read_parquet(parquet)
    monkeypatch.setattr("vmcellar.cli.commands.advise.read_frame", lambda *_: (frame, None))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    kept = cellar.config.read_text()
    jobs = [
        {"name": "office", "domains": ["office-*"], "rpo": "6h", "schedule": "0 2 * * *"},
        {"name": "by-hand", "domains": ["nightly-*"], "rpo": "6h"},
    ]
    cellar.config.write_text(f"{kept}\nbackups: {json.dumps(jobs)}\n")
    state = load_config(cellar.config).state

    assert cli("advise", "--undo").code == 1
    assert cli("advise", "--sample", "1", "--apply").code == 2
    done = cli("advise", "--rpo", "6h", "--apply")
    assert done.code == 0, done.err
    assert "nightly-0001" in done.err, "it is named, as no schedule of a job can be changed for it"
    advised = read_advised(state)
    assert {vm for each in advised for vm in each.vms} == {"office-0000"}
    assert sum(len(str(each.schedule.cron).split()[1].split(",")) for each in advised) >= 4, "every six hours at least"
    entries = job_entries(load_config(cellar.config), advised)["office"]
    assert entries[0].request["except_vms"] == ["office-0000"]
    catalog = Catalog.of(load_config(cellar.config), Repository.open(load_config(cellar.config)).id)
    (change,) = schedule_changes(catalog).to_dict("records")
    assert (change["vm"], change["before"], bool(change["applied"])) == ("office-0000", "the job's own", True)
    assert change["after"] == "; ".join(str(each.schedule) for each in advised)
    assert change["reason"]

    assert cli("advise", "--undo").code == 0
    assert read_advised(state) == ()
    assert list(schedule_changes(catalog)["reason"])[-1] == "undone"


def test_without_a_file_the_catalog_is_read(cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: cellar.second.time + 60)
    monkeypatch.setattr("vmcellar.cli.historyframe.time", clock)
    assert cli("catalog", "rebuild").code == 0
    done = cli("forecast", "web1")
    assert done.code == 0, done.err
    assert "no forecast of web1" in done.err
    assert "0 anomalies" in cli("anomalies").err
    assert cli("advise", "--rpo", "8h").code == 0


def test_rows_that_cannot_be_true_are_left_out_and_said(cli: Cli, parquet: Path) -> None:
    frame = pd.read_parquet(parquet)
    frame.loc[frame.index[5], "bytes_changed"] = -1
    frame.to_parquet(parquet)
    assert "1 rows of the history were not used" in cli("anomalies", "--history", str(parquet)).err
