"""What the UI shows of jobs, restores, evidence and the fleet: words for people, what is wrong first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from tasks.links import artifact_key, linked, links_to_backups
from tasks.pages import Result, evidence_page, fleet_page, job_page, restore_page
from tests.backup.test_report import FULL
from tests.monitoring.test_metrics import HOUR, START, rows
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.conditions import Condition
from vmcellar.catalog.databases import FILE, SqliteFile
from vmcellar.catalog.metrics import standing
from vmcellar.errors import PermanentError
from vmcellar.repository.evidence import Check, Evidence
from vmcellar.restore.report import LostRange, RestoredDisk, RestoreReport

POINT = "20261129T092720Z-52f733cf"
DRILL = Evidence(
    point=POINT,
    vm="web1",
    kind="drill",
    verdict="passed",
    time=START,
    host="kvm1",
    checks=(Check("alive", "a sign of life", "the agent\nanswers", ok=True),),
    seconds={"restore": 1.5, "start": 0.25},
    rto=125.0,
    rto_limit=1800.0,
)
BACK = Path("/srv/back")
RESTORED = RestoreReport(
    point=POINT,
    vm="web1",
    directory=BACK,
    format="qcow2",
    disks=(RestoredDisk("vda", BACK / "vda.qcow2", 256 << 20, 144 << 20),),
    artifacts={"domain.xml": BACK / "domain.xml"},
    lost=(),
    read=72 << 20,
    seconds=3.21,
)


def test_a_drill_that_passed() -> None:
    text = evidence_page(DRILL)
    assert text.startswith("# web1: drill passed\n")
    assert f"- point `{POINT}`, looked at 2027-01-15 08:00 UTC on the host kvm1\n" in text
    assert "- restored, running and checked in 2 min; the policy allows 30 min\n" in text
    assert "| alive | a sign of life | the agent answers | yes |\n" in text
    assert "| restore | 1.50 |" in text
    assert "the newest verified one" not in text, "no age was measured"
    assert "Screen" not in text


def test_a_verification_that_failed_says_first_what_is_not_met() -> None:
    checks = (Check("vda: root", "ab|cd", "ef", ok=False), Check("rto", "9 s", "10 s", ok=False, critical=False))
    found = replace(
        DRILL, kind="verification", verdict="failed", checks=checks, rto=None, expectations=("disks: whole",)
    )
    text = evidence_page(replace(found, screenshot=b"PNG"))
    assert text.startswith("# web1: verification **failed**\n")
    assert "restored, running" not in text
    assert text.index("- **not met**: disks: whole") < text.index("## Checks")
    assert "| vda: root | ab\\|cd | ef | **no** |\n" in text
    assert "| rto | 9 s | 10 s | no (a warning) |\n" in text
    assert text.endswith("![the guest's screen](data:image/png;base64,UE5H)")


def test_a_restore_says_where_it_lies_and_what_to_type() -> None:
    text = restore_page(RESTORED, "web1-back", "kvm1")
    assert f"# web1: point `{POINT}` restored\n" in text
    assert "- on the host kvm1, in `/srv/back`; beside the disks: domain.xml\n" in text
    assert "`virsh start web1-back` starts it" in text
    assert "- read 72 MiB from the tiers in 3.2 s\n" in text
    assert "| vda | 256 MiB | 144 MiB | `/srv/back/vda.qcow2` |" in text
    lost = restore_page(replace(RESTORED, lost=(LostRange("vda", 0, 4096, "pack p1"),)), "", "kvm1")
    assert lost.startswith(f"# web1: point `{POINT}` restored, lost ranges: 1\n\n- **lost**: vda, 4096 bytes at 0")
    assert "virsh" not in lost


def test_a_job_leads_to_the_reports_of_its_points() -> None:
    results: dict[str, Result] = {"web1": FULL, "db1": PermanentError("no such VM", hint="see virsh list")}
    text = job_page("nightly", results, {"web1": "[web1](/artifacts/artifact/7)"})
    assert text.startswith("# nightly: 1 of 2 VMs have a new verified point\n")
    assert text.index("| db1 | **failed**: no such VM") < text.index("| [web1]")
    assert f"| [web1](/artifacts/artifact/7) | full point `{FULL.id}` | 128 MiB | 64 MiB |" in text


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = Catalog(SqliteFile(tmp_path / FILE), "ab" * 16)
    made.add(rows())
    return made


def test_the_fleet(catalog: Catalog) -> None:
    late = Condition("web: RPO", "critical", "web: its newest verified point is 25 h old")
    text = fleet_page(
        standing(catalog), [late], {"web": 24 * HOUR, "db": 24 * HOUR}, START + 25 * HOUR, {"web": "[web](x)"}
    )
    assert text.startswith("# 2 of 2 VMs have a verified point, 1 thing is wrong\n\n- **critical**: web: its newest")
    web = "2027-01-15 09:00, **failed** | 2027-01-15 08:00 | **25 h** of 24 h | never | 0 B |"
    db = "2027-01-15 09:00, a point | 2027-01-15 09:00 | 24 h of 24 h | 2027-01-15 11:00 | 4 MiB |"
    assert f"| [web](x) | {web}\n| db | {db}" in text, "what failed comes first"
    assert "| newest run (UTC) | newest verified (UTC) | age, of RPO | good proof (UTC) |" in text
    assert "| hot | 20 B | 80 B |" in text
    assert "| cold | 5 B | no end |" in text


def test_a_fleet_of_nothing(tmp_path: Path) -> None:
    text = fleet_page(standing(Catalog(SqliteFile(tmp_path / FILE), "ab" * 16)), [], {}, START, {})
    assert text.startswith("# 0 of 0 VMs have a verified point, nothing is wrong\n")
    assert "`upkeep-repository`" in text


def test_keys_are_what_prefect_takes() -> None:
    assert artifact_key("backup", "Web_1.example") == "backup-web-1-example"
    assert artifact_key("backup", "Ä") == "backup-vm"


def test_a_report_leads_to_those_that_there_are_and_is_changed_in_that_alone() -> None:
    drill, restore = UUID(int=1), UUID(int=2)
    first = linked("# A point\n\nfigures\n", "backup", "web1", {"drill-web1": drill})
    everything = "[all](/artifacts/key/{}-web1)".format
    assert first == (
        "# A point\n\nfigures\n\nReports of web1: "
        f"this backup ({everything('backup')}), [drill](/artifacts/artifact/{drill}) ({everything('drill')}), "
        "no verification yet, no restore yet\n"
    )
    second = linked(first, "backup", "web1", {"restore-web1": restore})
    assert second.count("Reports of web1") == 1
    assert second.startswith("# A point\n\nfigures\n\nReports of web1: this backup")
    assert "no drill yet" in second
    assert f"[restore](/artifacts/artifact/{restore})" in second


def test_a_vm_without_a_report_is_no_link() -> None:
    assert links_to_backups(["web1"], {}) == {"web1": "web1"}
