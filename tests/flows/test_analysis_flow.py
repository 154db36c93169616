"""`analyse_history` against a real server: what it publishes, on a repository with a few points."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deployments import registration
from flows.adapting import adapt_schedules
from flows.analysis import analyse_history
from flows.parameters import AdaptSchedules, AnalyseHistory
from lab.history import note_runs
from tasks import evidence as shown
from tests.analysis.attacked import attack, attacked_history
from tests.flows.seen import Seen
from tests.repository.writing import back_up
from vmcellar.backup import wanted_full
from vmcellar.catalog.models import StorageAdvice
from vmcellar.config import load_config
from vmcellar.engine import open_engine
from vmcellar.policy.timetable import read_advised
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import pins

pytestmark = pytest.mark.prefect


def test_ransomware_in_a_vm_is_told_its_good_points_pinned_and_its_next_backup_a_full(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    config = tmp_path / "vmcellar.yaml"
    config.write_text("tiers: {hot: repo}\nkey: {file: pass}\nstate: state\nbackups: [{name: all}]\n")
    Repository.init(load_config(config)).close()
    engine = open_engine(config)
    world = attack(engine)
    note_runs(engine.catalog, attacked_history()[2])
    events: list[Any] = []
    monkeypatch.setattr(shown, "emit_event", lambda **event: events.append(event))
    first, again = (asyncio.run(analyse_history(AnalyseHistory(config=str(config)))) for _ in range(2))
    engine.repository.close()
    assert (first["anomalies"], again["anomalies"]) == (1, 0), "once"
    (event,) = events
    assert event["event"] == "vmcellar.anomaly.found"
    assert (event["payload"]["vm"], event["payload"]["kind"]) == (world.vm, "ransomware")
    held = pins.pinned(engine.repository)
    assert held == set(event["payload"]["pinned"])
    assert all(engine.repository.point(name).time < world.at for name in held)
    assert "ransomware" in wanted_full.asked(engine.state, world.vm, engine.repository.points_of(world.vm))
    page = str(seen.artifacts(seen.flow_run("analyse history"))["history"].data)
    assert "## What followed" in page
    assert all(name in page for name in held)


def on_the_server(seen: Seen) -> dict[str, str]:
    """What the job's deployment is started with, by when."""
    found = seen.client.read_deployment_by_name("backup-job/all@kvm12").schedules
    return {str(each.schedule): str(each.parameters) for each in found}


def test_schedules_are_shown_applied_and_taken_back(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    config = tmp_path / "vmcellar.yaml"
    job = '{name: all, schedule: "0 * * * *", rpo: 12h}'
    config.write_text(f"tiers: {{hot: repo}}\nkey: {{file: pass}}\nstate: state\nbackups: [{job}]\n")
    Repository.init(load_config(config)).close()
    engine = open_engine(config)
    vm, at, frame = attacked_history()
    note_runs(engine.catalog, frame[frame["started"].dt.hour % 8 == 0])
    engine.repository.clock = lambda: at
    asyncio.run(registration.register(engine.config, "kvm12"))
    own = on_the_server(seen)

    def adapt(action: str) -> dict[str, int]:
        values = {"config": str(config), "action": action, "budget": 2.0, "where": "kvm12"}
        return asyncio.run(adapt_schedules(AdaptSchedules.model_validate(values)))

    shown_only = adapt("show")
    assert on_the_server(seen) == own
    assert (shown_only, read_advised(engine.state)) == ({"advised": 1, "changed": 0}, ())
    table = str(seen.artifacts(seen.flow_run("adapt schedules: show"))["schedules-advised"].data)
    assert vm in table
    assert "breaches a year" in table
    assert adapt("apply")["changed"] == 1
    assert {name for each in read_advised(engine.state) for name in each.vms} == {vm}
    applied = on_the_server(seen)
    assert len(applied) > len(own), "the VM has schedules of its own there"
    assert all(vm in parameters for parameters in set(applied.values()) - set(own.values()))
    assert "schedule-gains" in seen.artifacts(seen.flow_run("adapt schedules: apply"))
    assert adapt("undo")["changed"] == 1
    assert on_the_server(seen) == own
    engine.repository.close()
    assert read_advised(engine.state) == ()
    assert [row.by for row in engine.catalog.schedule_changes()] == ["adapt-schedules"] * 2


def test_it_publishes_quality_tables_and_plots(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    config = tmp_path / "vmcellar.yaml"
    config.write_text("tiers: {hot: repo}\nkey: {file: pass}\nstate: state\n")
    repository = Repository.init(load_config(config))
    with ThreadPoolExecutor(2) as pool:
        back_up(repository, pool, [(0, b"1" * (1 << 20))], 8 << 20, vm="web1", time=time.time() - 600)
    repository.close()
    told = asyncio.run(analyse_history(AnalyseHistory(config=str(config))))
    open_engine(config).repository.close()
    assert (told["runs"], told["rows"]) == (1, 1), "the catalog was filled from the repository"
    found = seen.artifacts(seen.flow_run("analyse history"))
    assert {"history", "history-quality", "plot-tier-hot", "plot-change-calendar", "plot-what-if"} <= found.keys()
    assert "## Capacity" in str(found["history"].data)
    assert "| as now: 1 days, hot |" in str(found["history"].data)
    assert str(found["plot-tier-hot"].data).startswith("data:image/png;base64,")
    assert found["plot-tier-hot"].type == "image"


def test_a_damaged_map_is_named_and_all_else_is_told(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    config = tmp_path / "vmcellar.yaml"
    config.write_text("tiers: {hot: repo}\nkey: {file: pass}\nstate: state\n")
    repository = Repository.init(load_config(config))
    points: list[RestorePoint] = []
    packs: list[set[Path]] = [set()]
    with ThreadPoolExecutor(2) as pool:
        for number in range(3):
            change = [(number << 20, bytes([number]) * (1 << 20))]
            parent = points[-1] if points else None
            points.append(back_up(repository, pool, change, 8 << 20, parent, vm="web1", time=time.time() - 600))
            packs.append({path for path in (tmp_path / "repo/meta").rglob("*") if path.is_file()})
    repository.close()
    (own,) = packs[3] - packs[2]
    own.chmod(0o600)
    own.write_bytes(bytes(own.stat().st_size))
    engine = open_engine(config)
    advised = StorageAdvice(
        id="a1", repository=engine.catalog.repository, about="consolidation", vm="", time=time.time(),
        today="many packs", advised="vmcellar consolidate", figure=100.0, predicted=10.0,
    )  # fmt: skip
    engine.catalog.add([advised])
    told = asyncio.run(analyse_history(AnalyseHistory(config=str(config))))
    engine.repository.close()
    assert (told["rows"], told["damaged"]) == (3, 1)
    found = seen.artifacts(seen.flow_run("analyse history"))
    page = str(found["history"].data)
    assert page.startswith("## Damaged")
    assert f"web1: point {points[2].id}, disk vda: " in page
    assert "cannot be measured" in page, "what consolidation brought"
    assert "## Capacity" in page
    assert "| web1 |" in page
    assert "plot-heat-map" in found
