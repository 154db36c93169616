"""The exporter over a catalog, a real Prometheus that scrapes it, alert rules and the dashboard."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lab.require import requires
from lab.waiting import wait_for
from tasks.queue import QueueCollector, asking
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.databases import FILE, SqliteFile
from vmcellar.catalog.metrics import CatalogCollector
from vmcellar.catalog.models import Base, Evidence, Point, Run, RunDisk, Stage, TierUse
from vmcellar.config.jobs import BackupJob

MONITORING = Path(__file__).parents[2] / "deployments" / "monitoring"
RULES = MONITORING / "vmcellar.rules.yml"
REPOSITORY = "ab" * 16
START = 1_800_000_000.0
HOUR = 3600.0
MIB = 1 << 20


def run(name: str, vm: str, hour: int, outcome: str) -> Run:
    begun = START + hour * HOUR
    ended: dict[str, Any] = {"finished": begun + 9, "held_seconds": 4.0, "freeze_seconds": 0.5}
    return Run(id=name, repository=REPOSITORY, vm=vm, job="nightly", started=begun, outcome=outcome, **ended)


def disk(target: str) -> RunDisk:
    sizes: dict[str, Any] = {
        "bytes_read": 8 * MIB,
        "bytes_changed": 6 * MIB,
        "bytes_new": 4 * MIB,
        "bytes_stored": 2 * MIB,
    }
    return RunDisk(**{"run_id": "d1", "target": target, "size": 1 << 30, **sizes})


def point(vm: str, hour: int, *, verified: bool) -> Point:
    facts: dict[str, Any] = {
        "kind": "full",
        "consistency": "crash",
        "disks": 1,
        "bytes_size": 1,
        "bytes_stored": 1,
        "run_id": "r",
    }
    identity: dict[str, Any] = {"id": f"{vm}{hour}", "repository": REPOSITORY, "vm": vm, "time": START + hour * HOUR}
    return Point(**{**identity, **facts, "verified": verified})


def proof(hour: int, kind: str, rto: float | None = None, *, ok: bool) -> Evidence:
    identity: dict[str, Any] = {
        "id": f"{kind}{hour}",
        "repository": REPOSITORY,
        "vm": "db",
        "point_id": "db1",
        "kind": kind,
    }
    return Evidence(**{**identity, "time": START + hour * HOUR, "ok": ok, "rto_seconds": rto})


def rows() -> list[Base]:
    """web: a good run, then one by hand that failed; db: one good run with two of three disks, a proof that failed, one
    of another point that passed, and a drill.
    """
    by_hand, whole = run("w2", "web", 1, "failed"), run("d1", "db", 1, "done")
    by_hand.job, whole.uncovered = "", ["vdc: passed through"]
    made: list[Base] = [run("w1", "web", 0, "done"), by_hand, whole]
    for target in ("vda", "vdb"):
        made += [disk(target), Stage(run_id="d1", target=target, stage="export", seconds=1.5)]
    made += [point("web", 0, verified=True), point("web", 1, verified=False), point("db", 1, verified=True)]
    made += [proof(1, "verify", ok=True), proof(2, "verify", ok=False), proof(1, "drill", 33.0, ok=True)]
    another = proof(3, "verify", ok=True)
    another.point_id = "db2"
    made.append(another)
    made.append(TierUse(repository=REPOSITORY, tier="hot", time=START, used=10, free=90))
    made.append(TierUse(repository=REPOSITORY, tier="hot", time=START + HOUR, used=20, free=80))
    made.append(TierUse(repository=REPOSITORY, tier="cold", time=START, used=5, free=None))
    return made


def exposition(folder: Path) -> str:
    catalog = Catalog(SqliteFile(folder / FILE), REPOSITORY)
    catalog.add(rows())
    registry = CollectorRegistry()
    job = BackupJob.model_validate({"name": "nightly", "rpo": "24h", "rto": "30s"})
    registry.register(CatalogCollector(lambda: catalog, [job], lambda: START + 24.5 * HOUR))
    registry.register(QueueCollector(waiting_server))
    return generate_latest(registry).decode()


def waiting_server(path: str, question: dict[str, Any]) -> Any:
    """Stands for Prefect's: one run waits, two work, one place of four is taken."""
    if path == "flow_runs/count":
        return {"SCHEDULED": 1, "PENDING": 0, "RUNNING": 2}[question["flow_runs"]["state"]["type"]["any_"][0]]
    assert path == "v2/concurrency_limits/filter"
    return [{"name": "vmcellar-kvm1", "limit": 4, "active_slots": 1}, {"name": "theirs", "limit": 1, "active_slots": 1}]


def samples(text: str) -> dict[tuple[str, frozenset[str]], float]:
    """Values by name and label values, without the repository's."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset(value for name, value in sample.labels.items() if name != "repository")
            found[sample.name, labels] = sample.value
    return found


def test_every_figure_is_that_of_the_newest_run(tmp_path: Path) -> None:
    found = samples(exposition(tmp_path))
    assert found["vmcellar_up", frozenset()] == 1
    assert found["vmcellar_vm_last_run_success", frozenset(("web",))] == 0
    assert found["vmcellar_vm_last_run_success", frozenset(("db",))] == 1
    assert found["vmcellar_vm_last_run_timestamp_seconds", frozenset(("web",))] == START + HOUR
    assert found["vmcellar_vm_last_run_read_bytes", frozenset(("db",))] == 16 * MIB
    assert found["vmcellar_vm_last_run_stored_bytes", frozenset(("db",))] == 4 * MIB
    assert ("vmcellar_vm_last_run_read_bytes", frozenset(("web",))) not in found, (
        "a run that failed before it read anything"
    )
    assert found["vmcellar_vm_last_run_compression_ratio", frozenset(("db",))] == 2
    assert found["vmcellar_vm_last_success_timestamp_seconds", frozenset(("web",))] == START + 9, "the newer one failed"
    assert found["vmcellar_vm_last_success_timestamp_seconds", frozenset(("db",))] == START + HOUR + 9
    assert found["vmcellar_vm_last_run_duration_seconds", frozenset(("db",))] == 9
    assert found["vmcellar_vm_last_run_stage_seconds", frozenset(("db", "export"))] == 3
    assert found["vmcellar_runs_total", frozenset(("web", "failed"))] == 1
    assert found["vmcellar_vm_last_verified_point_timestamp_seconds", frozenset(("web",))] == START, (
        "the newer one is not verified"
    )
    assert found["vmcellar_vm_points", frozenset(("web",))] == 2
    assert found["vmcellar_vm_rpo_target_seconds", frozenset(("db",))] == 86400
    assert found["vmcellar_vm_rpo_target_seconds", frozenset(("web",))] == 86400, "also after a run by hand"
    assert found["vmcellar_vm_uncovered_disks", frozenset(("db",))] == 1
    assert found["vmcellar_vm_uncovered_disks", frozenset(("web",))] == 0
    assert found["vmcellar_vm_proof_failed", frozenset(("db", "verify"))] == 1, "though another point was proven since"
    assert found["vmcellar_vm_proof_failed", frozenset(("db", "drill"))] == 0
    assert found["vmcellar_vm_last_proof_timestamp_seconds", frozenset(("db", "verify"))] == START + 3 * HOUR
    assert found["vmcellar_vm_last_rto_seconds", frozenset(("db",))] == 33
    assert found["vmcellar_tier_free_bytes", frozenset(("hot",))] == 80
    assert ("vmcellar_tier_free_bytes", frozenset(("cold",))) not in found
    assert found["vmcellar_tier_full_timestamp_seconds", frozenset(("hot",))] == START + 9 * HOUR, "10 an hour, 80 left"
    assert ("vmcellar_tier_full_timestamp_seconds", frozenset(("cold",))) not in found
    met = {vm: found["vmcellar_vm_objective_met", frozenset((vm, "rpo"))] for vm in ("web", "db")}
    assert met == {"web": 0, "db": 1}, "24.5 and 23.5 hours"
    assert found["vmcellar_vm_objective_met", frozenset(("db", "rto"))] == 0, "33 s, and 30 are asked for"
    assert found["vmcellar_vm_objective_met", frozenset(("web", "rto"))] == 0, "never drilled"


def test_what_waits_at_the_server_and_what_is_taken(tmp_path: Path) -> None:
    found = samples(exposition(tmp_path))
    states = ("waiting", "pending", "running")
    assert [found["vmcellar_flow_runs", frozenset((state,))] for state in states] == [1, 0, 2]
    assert found["vmcellar_limit_places", frozenset(("vmcellar-kvm1",))] == 4
    assert found["vmcellar_limit_places_taken", frozenset(("vmcellar-kvm1",))] == 1
    assert ("vmcellar_limit_places", frozenset(("theirs",))) not in found
    assert found["vmcellar_prefect_up", frozenset()] == 1


def test_a_server_that_does_not_answer_is_down_and_the_rest_is_told() -> None:
    registry = CollectorRegistry()
    registry.register(QueueCollector(asking("http://127.0.0.1:1/api")))
    assert samples(generate_latest(registry).decode()) == {("vmcellar_prefect_up", frozenset()): 0}


@pytest.mark.parametrize(
    ("error", "up"),
    [
        (HTTPError("", 401, "Unauthorized", Message(), None), 1),
        (HTTPError("", 503, "Unavailable", Message(), None), 0),
        (URLError(SSLError("self-signed certificate")), 1),
        (URLError(ConnectionRefusedError()), 0),
    ],
)
def test_a_server_that_refuses_us_is_up(error: Exception, up: int) -> None:
    def refusing(_path: str, _question: dict[str, Any]) -> Any:
        raise error

    registry = CollectorRegistry()
    registry.register(QueueCollector(refusing))
    assert samples(generate_latest(registry).decode()) == {("vmcellar_prefect_up", frozenset()): up}


def test_a_catalog_that_cannot_be_read_is_down_and_no_traceback(tmp_path: Path) -> None:
    exposition(tmp_path)
    catalog = Catalog(SqliteFile(tmp_path / FILE), REPOSITORY)
    for part in tmp_path.glob(f"{FILE}*"):
        part.write_bytes(b"no database at all" * 1000)
    registry = CollectorRegistry()
    registry.register(CatalogCollector(lambda: catalog, []))
    assert samples(generate_latest(registry).decode())["vmcellar_up", frozenset()] == 0


def test_rules_and_dashboard_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    exported = {name for name, _ in samples(exposition(tmp_path))}
    asked = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    asked += [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(panels) > 10
    for expression in asked:
        names = set(re.findall(r"\bvmcellar_[a-z_]+", expression))
        assert names
        assert names <= exported, f"{expression} asks for {sorted(names - exported)}"


def test_promtool_agrees_with_names_and_rules(tmp_path: Path) -> None:
    requires("promtool")
    for arguments, stdin in ((["check", "metrics"], exposition(tmp_path)), (["check", "rules", str(RULES)], "")):
        done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_must_and_only_then(tmp_path: Path) -> None:
    requires("promtool")
    cases = (Path(__file__).parent / "alerts.yml").read_text().replace("RULES", str(RULES))
    document = yaml.safe_load(cases)
    tested = {case["alertname"] for test in document["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]}
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    assert tested == alerts, "every alert is seen to fire"
    (tmp_path / "alerts.yml").write_text(cases)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_real_prometheus_scrapes_the_command(tmp_path: Path) -> None:
    requires("prometheus")
    (tmp_path / "vmcellar.yaml").write_text(yaml.safe_dump({"state": str(tmp_path)}))
    exposition(tmp_path)
    ours, theirs = free_port(), free_port()
    scrape = {"job_name": "vmcellar", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{ours}"]}]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [scrape], "rule_files": [str(RULES)]}))
    command = [sys.executable, "-m", "vmcellar.cli.main", "--config", str(tmp_path / "vmcellar.yaml"), "metrics"]
    options = [f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address=127.0.0.1:{theirs}"]
    with (tmp_path / "log").open("wb") as log:
        exporter = subprocess.Popen([*command, "--listen", str(ours)], stdout=log, stderr=log)
        prometheus = subprocess.Popen(
            ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", *options], stdout=log, stderr=log
        )
    try:
        found = wait_for(lambda: query(theirs, "vmcellar_vm_last_run_success"), "a scrape", seconds=60)
        assert {each["metric"]["vm"]: each["value"][1] for each in found or []} == {"web": "0", "db": "1"}
    finally:
        for process in (prometheus, exporter):
            process.terminate()
            process.wait(30)
    assert exporter.returncode == 0, "stopped cleanly"


def query(port: int, expression: str) -> list[Any]:
    try:
        return list(ask(port, "query", query=expression)["result"])
    except OSError as error:  # it has not begun to listen, or to answer
        if isinstance(error, HTTPError) and error.code == HTTPStatus.BAD_REQUEST:
            raise
        return []


def ask(port: int, path: str, **question: str) -> Any:
    """What Prometheus' API answers; HTTPError for an expression that it does not understand."""
    address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(question)}"
    with urllib.request.urlopen(address, timeout=5) as answer:
        return json.load(answer)["data"]


@pytest.mark.parametrize("listen", ["", "here", "127.0.0.1:", "0", "70000", "²"])
def test_no_port_is_bad_use(tmp_path: Path, listen: str) -> None:
    (tmp_path / "vmcellar.yaml").write_text(yaml.safe_dump({"state": str(tmp_path)}))
    command = [sys.executable, "-m", "vmcellar.cli.main", "--config", str(tmp_path / "vmcellar.yaml"), "metrics"]
    done = subprocess.run([*command, "--listen", listen], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no port" in done.stderr


def test_a_device_is_not_replaced_by_a_textfile(tmp_path: Path) -> None:
    (tmp_path / "vmcellar.yaml").write_text(yaml.safe_dump({"state": str(tmp_path)}))
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "vmcellar.cli.main", "--config", str(tmp_path / "vmcellar.yaml"), "metrics"]
    done = subprocess.run([*command, "--textfile", tmp_path / "pipe"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (tmp_path / "pipe").is_fifo()


def test_the_textfile_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "vmcellar.yaml").write_text(yaml.safe_dump({"state": str(tmp_path)}))
    text = exposition(tmp_path)
    command = [sys.executable, "-m", "vmcellar.cli.main", "--config", str(tmp_path / "vmcellar.yaml"), "metrics"]
    subprocess.run([*command, "--textfile", str(tmp_path / "v.prom")], check=True)
    written = samples((tmp_path / "v.prom").read_text())
    policy = {"vmcellar_vm_rpo_target_seconds", "vmcellar_vm_objective_met"}
    asked = {"vmcellar_prefect_up", "vmcellar_flow_runs", "vmcellar_limit_places", "vmcellar_limit_places_taken"}
    assert {name for name, _ in written} == {name for name, _ in samples(text)} - policy - asked
