"""The dashboard and the alert rules against a real Prometheus, which scrapes what real runs left in the catalog."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.backup import backup_job
from flows.parameters import BackupJob, VerifyRestores
from flows.verify import verify_restores
from lab.guest import LabGuest
from lab.require import requires
from lab.waiting import wait_for
from tests.flows.conftest import CellarFactory
from tests.flows.seen import Seen
from tests.monitoring.test_metrics import MONITORING, RULES, ask, free_port, query
from tests.proof.cellar import Cellar
from vmcellar.catalog.models import TierUse

DASHBOARD = json.loads((MONITORING / "grafana.json").read_text())
DAY = 86400.0
FILLED = 1 << 30
"""Bytes that a tier lost in a day: a test's tier does not fill by itself."""


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression by its panel's title, with all VMs chosen, as Grafana asks for it."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']}, {target['legendFormat']}", target["expr"].replace("$vm", ".*")


@contextmanager
def scraping(cellar: Cellar, environment: dict[str, str], folder: Path) -> Iterator[int]:
    """A Prometheus with our rules that scrapes `vmcellar metrics` each second; its port."""
    ours, theirs = free_port(), free_port()
    scrape = {"job_name": "vmcellar", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{ours}"]}]}
    wanted = {"global": {"evaluation_interval": "1s"}, "scrape_configs": [scrape], "rule_files": [str(RULES)]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(wanted))
    options = [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{theirs}"]
    metrics = [sys.executable, "-m", "vmcellar.cli.main", "--config", str(cellar.file), "metrics"]
    commands = [
        [*metrics, "--listen", str(ours)],
        ["prometheus", f"--config.file={folder / 'prometheus.yml'}", *options],
    ]
    with (folder / "log").open("wb") as log:
        started = [subprocess.Popen(each, stdout=log, stderr=log, env=environment) for each in commands]
    try:
        yield theirs
    finally:
        for process in started:
            process.terminate()
            process.wait(30)


@pytest.mark.guest
@pytest.mark.libvirt
@pytest.mark.prefect
def test_every_panel_shows_something_of_a_backup_a_proof_and_a_drill(
    seen: Seen, environment: dict[str, str], make_cellar: CellarFactory, flow_guest: LabGuest, tmp_path: Path
) -> None:
    requires("prometheus")
    job = {"name": "nightly", "domains": [flow_guest.name], "rpo": "24h", "rto": "1h"}
    cellar = make_cellar(backups=[job])
    seen.client.upsert_global_concurrency_limit_by_name("vmcellar-dashboard", 2)
    asyncio.run(backup_job(BackupJob(config=str(cellar.file), job="nightly")))
    asyncio.run(verify_restores(VerifyRestores(config=str(cellar.file), drill_days=0)))
    note_that_hot_fills(cellar)
    with scraping(cellar, environment, tmp_path) as port:
        for title, expression in expressions():
            found = wait_for(partial(query, port, expression), f"{title}: {expression}", seconds=60)
            assert all(float(each["value"][1]) >= 0 for each in found), title
        variable = DASHBOARD["templating"]["list"][1]["query"]
        assert variable == "label_values(vmcellar_vm_last_run_timestamp_seconds, vm)"
        shown = ask(port, "query", query="vmcellar_vm_last_run_timestamp_seconds")["result"]
        assert [each["metric"]["vm"] for each in shown] == [flow_guest.name]
        rules = wait_for(lambda: evaluated(port), "the rules to be evaluated")
        assert {rule["name"]: rule["health"] for rule in rules if rule["health"] != "ok"} == {}
        assert {rule["name"] for rule in rules if rule["state"] == "firing"} <= {"VmcellarTierFillsUp"}


def evaluated(port: int) -> list[dict[str, Any]]:
    """All rules, once each has been looked at."""
    rules = [rule for group in ask(port, "rules")["groups"] for rule in group["rules"]]
    return rules if all(rule["health"] != "unknown" for rule in rules) else []


def note_that_hot_fills(cellar: Cellar) -> None:
    """Two looks at the tier, a day apart, as `vmcellar capacity` notes them."""
    repository, now = cellar.engine.catalog.repository, time.time()
    for when, used in ((now - DAY, 1), (now, 1 + FILLED)):
        look = TierUse(repository=repository, tier="hot", time=when, used=used, free=100 * FILLED - used)
        cellar.engine.catalog.add([look])


def test_panels_have_help_and_lie_side_by_side() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = [one[at] >= other[at] + other[span] or other[at] >= one[at] + one[span] for at, span in ("xw", "yh")]
        assert any(apart), f"{one} lies over {other}"


def test_figures_are_not_red_by_grafanas_own_threshold_of_80() -> None:
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "stat":
            steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            assert [step["value"] for step in steps] in ([None], [None, 1]), panel["title"]
