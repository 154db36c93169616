"""`verify_restores` and `drill_point` against a real server: sound points raise no alarm, planted faults do."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.parameters import DrillPoint, VerifyRestores
from flows.verify import drill_point, verify_restores
from lab.guest import LabGuest
from tasks import evidence as shown
from tasks.verify import Outcome
from tests.flows.conftest import CellarFactory
from tests.flows.seen import Seen
from tests.flows.test_other_flows import damage_a_pack
from tests.proof.cellar import MIB, Cellar
from vmcellar.backup.source_check import differences
from vmcellar.cli import main as cli_main
from vmcellar.errors import IntegrityError
from vmcellar.progress import CancelToken
from vmcellar.repository import evidence
from vmcellar.restore import drill_journal
from vmcellar.sources.libvirt_capture import LibvirtCapture

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would be emitted; the server takes events in bulk, some time later."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(shown, "emit_event", lambda **event: told.append(event))
    return told


def verify(cellar: Cellar, **request: Any) -> list[Outcome]:
    return asyncio.run(verify_restores(VerifyRestores(config=str(cellar.file), **request)))


def nothing_left(cellar: Cellar) -> None:
    assert drill_journal.journals(cellar.config.state) == []
    assert not (cellar.config.scratch / "drills").exists()
    assert list((cellar.config.scratch / "proofs").iterdir()) == []


@pytest.mark.guest
def test_sound_points_are_proven_by_risk_and_the_newest_is_drilled(
    seen: Seen, cellar: Cellar, flow_guest: LabGuest, events: list[dict[str, Any]]
) -> None:
    first, second = cellar.backup(flow_guest), cellar.backup(flow_guest)
    outcomes = verify(cellar)
    assert [(each.point, each.record.kind, each.record.verdict) for each in outcomes if each.record] == [
        (second.id, "verification", "passed"),
        (second.id, "drill", "passed"),
        (first.id, "verification", "passed"),
    ]
    assert events == []
    run = seen.flow_run("verify restores of all VMs")
    artifacts = seen.artifacts(run)
    risks = json.loads(str(artifacts["proof-risks"].data))
    assert [row["point"] for row in risks] == [second.id, first.id]
    assert "newest of its VM" in risks[0]["why"]
    rows = json.loads(str(artifacts["proof-expectations"].data))
    assert {row["suite"] for row in rows} == {"points", "disks", "drills"}
    assert {row["met"] for row in rows} == {"yes"}
    page = cellar.config.state / "quality/gx/uncommitted/data_docs/local_site/index.html"
    assert page.exists()
    assert cellar.backup(flow_guest).kind == "incremental"
    nothing_left(cellar)


def test_a_flipped_chunk_is_told_and_the_next_backup_reads_everything(
    seen: Seen, cellar: Cellar, flow_guest: LabGuest, events: list[dict[str, Any]]
) -> None:
    point = cellar.backup(flow_guest)
    damage_a_pack(cellar)
    with pytest.raises(IntegrityError, match="evidence speaks against 1 of 1"):
        verify(cellar)
    (event,) = events
    assert (event["event"], event["payload"]["point"]) == ("vmcellar.point.unverified", point.id)
    run = seen.flow_run("verify restores of all VMs")
    assert run.state is not None
    assert run.state.is_failed()
    standing = evidence.standings(cellar.engine.repository.tier)[point.id]
    assert standing.failed
    assert standing.drill is None, "what is damaged is not booted"
    record = evidence.read(cellar.engine.repository, standing.newest[0])
    assert "points: every chunk decodes to its id" in record.expectations
    with pytest.raises(IntegrityError, match="restore: expected every byte"):
        asyncio.run(drill_point(DrillPoint(config=str(cellar.file), point=point.id)))
    page = str(seen.artifacts(seen.flow_run(f"drill {point.id}"))[f"drill-{flow_guest.name}"].data)
    assert f"[all](/artifacts/key/drill-{flow_guest.name})" in page
    again = cellar.backup(flow_guest)
    assert again.kind == "full"
    assert "evidence speaks against" in again.reason
    assert [each.record.verdict for each in verify(cellar, most=1, drills=False) if each.record] == ["passed"]
    nothing_left(cellar)


def test_data_that_a_wrong_tracker_missed_is_found_against_the_running_vm(
    seen: Seen, make_cellar: CellarFactory, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert seen
    cellar = make_cellar(limits={"segment": 4 * MIB, "sample": 0})
    cellar.backup(flow_guest)
    flow_guest.poke("vda", 2 * MIB, MIB, seed=78)  # not at the end of its data, which is looked at in any case
    with monkeypatch.context() as patch:
        patch.setattr(LibvirtCapture, "dirty", lambda *_: [])
        stale = cellar.backup(flow_guest)
    assert stale.kind == "incremental"
    with pytest.raises(IntegrityError, match=f"{stale.id}: source: expected equal"):
        verify(cellar, against_source=True, drills=False, most=1)
    cellar.assert_nothing_left(flow_guest)
    mended = cellar.backup(flow_guest)
    assert mended.kind == "full"
    assert differences(cellar.engine, cellar.point(mended), CancelToken()) == ()
    cellar.assert_nothing_left(flow_guest)
    flow_guest.poke("vda", MIB, 10 * MIB, seed=1)


def test_the_command_writes_evidence_and_show_tells(
    cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vmcellar", "--config", str(cellar.file), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli_main.main()
        return int(stopped.value.code or 0), capsys.readouterr().out

    cellar.backup(flow_guest)
    damage_a_pack(cellar)
    code, text = run("drill", f"{flow_guest.name}@latest")
    assert code == 1
    assert "last drill: failed" in text
    assert "restore: expected every byte" in text
    assert "last drill: failed" in run("show", f"{flow_guest.name}@latest")[1]
    code, text = run("slo", "--json")
    (level,) = json.loads(text)
    assert (code, level["problems"]) == (1, ["no verified point", "the last drill failed"])
    assert level["rto"] is None
    assert run("drill")[0] == 2
    assert run("drill", "--clear") == (0, "nothing to remove\n")
