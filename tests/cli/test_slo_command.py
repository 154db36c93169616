"""`vmcellar slo`: each VM against its policy, from its newest verified point and its last drill."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.catalog.rows import run
from tests.cli.conftest import Cellar, Cli
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.models import Anomaly
from vmcellar.config import load_config
from vmcellar.errors import TransientError
from vmcellar.quality import frames, selection
from vmcellar.repository import evidence
from vmcellar.repository.evidence import Evidence
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.tiers.base import ArchivedError

POLICY = """
backups:
  - {name: web, domains: ["web*"], rpo: 6h, rto: 2m}
"""
HOUR = 3600.0
DAY = 24 * HOUR


def add(cellar: Cellar, record: Evidence) -> None:
    repository = Repository.open(load_config(cellar.config))
    evidence.write(repository, record)
    repository.close()


def drill(cellar: Cellar, rto: float, verdict: evidence.Verdict = "passed", time: float = 0.0) -> Evidence:
    check = evidence.Check("alive", "a sign", "a sign", ok=verdict == "passed")
    at = cellar.second.time + HOUR + time
    return Evidence(cellar.second.id, "web1", "drill", verdict, at, "h", (check,), rto=rto, alive="agent")


def test_without_policy_and_proofs(cli: Cli, cellar: Cellar) -> None:
    result = cli("slo", "--json")
    levels = {level["vm"]: level for level in json.loads(result.out)}
    assert result.code == 0
    assert levels["web1"]["point"] == cellar.second.id
    assert levels["web1"]["rpo_limit"] is levels["web1"]["rto"] is levels["web1"]["drilled"] is None
    assert all(level["ok"] for level in levels.values())
    shown = cli("slo").out
    assert "never" in shown
    assert "ok" in shown


def test_against_a_policy(cli: Cli, cellar: Cellar) -> None:
    cellar.config.write_text(cellar.config.read_text() + POLICY)
    web = next(level for level in json.loads(cli("slo", "--json").out) if level["vm"] == "web1")
    assert web["job"] == "web"
    assert web["rpo_limit"] == 6 * HOUR
    assert "never drilled, so rto is not known" in web["problems"]
    add(cellar, drill(cellar, 300))
    assert "the last drill took longer than rto" in cli("slo").out
    add(cellar, drill(cellar, 60, time=60))
    shown = cli("slo")
    assert "longer than rto" not in shown.out
    assert "1 min 0 s of 2 min 0 s" in shown.out
    levels = {level["vm"]: level for level in json.loads(cli("slo", "--json").out)}
    assert levels["web1"]["predicted"] == pytest.approx(60)
    assert levels["db1"]["rto"] is None
    assert levels["db1"]["predicted"] == pytest.approx(60), "by the rate of the other's drill: its disk is as large"
    add(cellar, drill(cellar, 60, "failed", time=120))
    web = next(level for level in json.loads(cli("slo", "--json").out) if level["vm"] == "web1")
    assert "the last drill failed" in web["problems"]
    assert web["point"] == cellar.first.id, "a point that evidence speaks against counts for nothing"
    assert cli("slo").code == 1


def test_a_vm_whose_backups_always_failed_is_out_of_policy_though_a_job_selects_it_by_a_pattern(
    cli: Cli, cellar: Cellar
) -> None:
    cellar.config.write_text(cellar.config.read_text() + "backups: [{name: web, domains: ['web*', '!web8']}]\n")
    repository = Repository.open(load_config(cellar.config))
    catalog = Catalog.of(load_config(cellar.config), repository.id)
    catalog.add([run(vm, vm=vm, repository=catalog.repository, outcome="failed") for vm in ("web8", "web9", "app")])
    repository.close()
    result = cli("slo", "--json")
    (level,) = (level for level in json.loads(result.out) if level["vm"] not in ("web1", "db1"))
    assert (level["vm"], level["problems"], result.code) == ("web9", ["no verified point"], 1)
    (load_config(cellar.config).state / "catalog.sqlite").write_text("no database" * 99)
    without = cli("slo")
    assert (without.code, "VMs that have no point and that no job names" in without.err) == (0, True)


def test_an_empty_repository_has_no_levels(cli: Cli, cellar: Cellar) -> None:
    for path in (cellar.folder / "repo" / "points").iterdir():
        path.unlink()
    assert cli("slo", "--json").out == "[]\n"


def test_prove_writes_evidence_and_says_what_failed(cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SKEW", 1e9)  # these points are of the year 2027
    with cellar.config.open("a") as file:
        file.write("scratch: scratch\n")
    result = cli("prove", "web1@latest", "--json")
    (record,) = json.loads(result.out)
    assert (result.code, record["verdict"], record["point"]) == (0, "passed", cellar.second.id)
    assert "last verification: passed" in cli("show", "web1@latest").out
    assert "1 evidence" in cli("catalog", "show").err
    assert cellar.second.id not in cli("prove", "--due", "2").out, "the others were never proven"
    for pack in (cellar.folder / "repo" / "data").rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            pack.write_bytes(pack.read_bytes()[:-4096])
    result = cli("prove", cellar.second.id)
    assert result.code == 1
    assert "expectation not met: points: every chunk decodes to its id" in result.out
    assert json.loads(cli("list", "web1", "--json").out)[1]["verified"] is False
    assert cli("prove").code == cli("prove", "x", "--due", "1").code == 2


def test_a_point_that_cannot_be_proven_now_keeps_no_other_from_it(
    cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prove(_repository: object, _config: object, point: RestorePoint, *_: object) -> object:
        tried.append(point.id)
        raise ArchivedError(f"{point.id} must be thawed first")

    tried: list[str] = []
    monkeypatch.setattr("vmcellar.quality.proving.prove", prove)
    result = cli("prove", cellar.first.id, cellar.second.id)
    assert (result.code, tried) == (1, [cellar.first.id, cellar.second.id])
    assert result.err.count("could not be proven") == 2


def test_what_else_is_known_of_a_vm_makes_its_points_due_first(
    cellar: Cellar, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cellar.config.write_text(cellar.config.read_text() + "placement: {hot: 2d, cold: rest}\n")
    cellar.config.write_text(cellar.config.read_text().replace("{hot: repo}", "{hot: repo, cold: cold}"))
    config = load_config(cellar.config)
    (cellar.folder / "cold").mkdir()
    repository = Repository.open(config)
    now = max(cellar.second.time, cellar.other.time) + DAY
    facts = {each.point: each for each in selection.facts(repository, config, now)}
    assert {(each.anomaly, each.damage, each.tier) for each in facts.values()} == {(False, False, "")}

    evidence.write(repository, drill(cellar, 60, "failed"))
    strange: dict[str, Any] = {
        "kind": "ransomware",
        "disks": "vda",
        "text": "it writes what looks encrypted",
        "score": 9.0,
    }
    times = {"began": now, "at": now, "last": now, "noted": now}
    own = {"repository": repository.id.hex(), **strange, **times}
    rows = [Anomaly(id="a", vm="db1", **own), Anomaly(id="b", vm="web1", judged=now, **own)]
    Catalog.of(config, repository.id).add(rows)
    facts = {each.point: each for each in selection.facts(repository, config, now + DAY)}
    assert [facts[each.id].anomaly for each in (cellar.first, cellar.other)] == [False, True]
    assert [facts[each.id].damage for each in (cellar.first, cellar.second, cellar.other)] == [True, False, False]
    assert facts[cellar.second.id].failed
    assert {each.tier for each in facts.values()} == {"cold"}

    monkeypatch.setattr(Catalog, "anomalies", no_catalog)
    facts = {each.point: each for each in selection.facts(repository, config, now)}
    assert not facts[cellar.other.id].anomaly
    assert "judged without anomalies: the catalog is away" in caplog.text
    repository.close()


def no_catalog(_catalog: Catalog) -> list[Anomaly]:
    raise TransientError("the catalog is away")


def test_a_vm_that_was_never_backed_up_is_out_of_policy(cli: Cli, cellar: Cellar) -> None:
    job = '  - {name: db, domains: [mail1, "db-*", "tag:prod", "!db2", db2, web1]}\n'
    cellar.config.write_text(cellar.config.read_text() + POLICY + job)
    result = cli("slo", "--json")
    levels = {level["vm"]: level for level in json.loads(result.out)}
    assert result.code == 1
    assert (levels["mail1"]["problems"], levels["mail1"]["job"], levels["mail1"]["rpo"]) == (
        ["no verified point"],
        "db",
        None,
    )
    assert not {"db-*", "tag:prod", "!db2", "db2"} & set(levels)
    assert "mail1" in cli("slo").out


def test_a_drill_whose_record_cannot_be_read_is_no_proof_of_rto(cli: Cli, cellar: Cellar) -> None:
    cellar.config.write_text(cellar.config.read_text() + POLICY)
    add(cellar, drill(cellar, 60))
    (record,) = [path for path in cellar.folder.rglob("*-drill-passed-*") if path.is_file()]
    record.chmod(0o600)
    record.write_bytes(b"torn")
    web = next(level for level in json.loads(cli("slo", "--json").out) if level["vm"] == "web1")
    assert "the record of the last drill cannot be read, so rto is not known" in web["problems"]
