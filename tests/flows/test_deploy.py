"""Jobs as scheduled deployments on a real server: `vmcellar deploy`, `vmcellar up`, upkeep by schedule."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.schedules import SCHEDULE_TYPES, CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import CancelledRun, ObjectNotFound
from typer.testing import CliRunner

from deployments import registration
from deployments.automations import all_of
from deployments.wanted import wanted
from flows.backup import backup_job
from flows.parameters import BackupJob, Schedules, Upkeep
from flows.schedules import reconcile_schedules
from flows.upkeep import upkeep_repository
from lab.guest import LabGuest
from lab.waiting import wait_for
from tasks.evidence import UNVERIFIED
from tests.flows.conftest import CellarFactory
from tests.flows.seen import Seen
from tests.proof.cellar import Cellar
from vmcellar.catalog.metrics import standing
from vmcellar.cli.main import app
from vmcellar.config.schedules import Schedule
from vmcellar.errors import UsageError
from vmcellar.policy.bandwidth import Throttle
from vmcellar.policy.timetable import Advised, write_advised
from vmcellar.tiers.base import LockedError
from vmcellar.tiers.local import LocalTier

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]

JOBS: list[dict[str, Any]] = [
    {"name": "nightly", "schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}, "retention": {"last": 1}},
    {"name": "often", "schedule": {"interval": "1h"}},
    {"name": "by-hand"},
]


def vmcellar(cellar: Cellar, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmcellar.cli.main", "--config", str(cellar.file), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def deploy(cellar: Cellar, *arguments: str, host: str = "kvm7") -> str:
    """`vmcellar deploy` in this process, which has loaded Prefect already; its output."""
    done = CliRunner().invoke(app, ["--config", str(cellar.file), "deploy", "--host", host, *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def schedules(seen: Seen, deployment: str) -> dict[str | None, Any]:
    return {each.slug: each for each in seen.client.read_deployment_by_name(deployment).schedules}


def test_deploy_registers_every_job_once_and_takes_away_what_is_gone(
    seen: Seen, environment: dict[str, str], make_cellar: CellarFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", environment["PREFECT_API_URL"])
    cellar = make_cellar(backups=JOBS, limits={"shared": {"san-a": 3}})
    assert "backup-job/nightly@kvm7" in json.loads(deploy(cellar, "--dry-run", "--json"))["new"]
    with pytest.raises(ObjectNotFound):
        seen.client.read_deployment_by_name("backup-job/nightly@kvm7")

    assert "new       backup-job/nightly@kvm7" in deploy(cellar)
    nightly = seen.client.read_deployment_by_name("backup-job/nightly@kvm7")
    assert (nightly.work_pool_name, nightly.work_queue_name) == ("vmcellar", "kvm7")
    assert nightly.job_variables["env"]["VMCELLAR_CONFIG"] == str(cellar.file)
    (made,) = nightly.schedules
    assert (made.slug, made.active) == ("vmcellar", True)
    assert made.schedule == CronSchedule(cron="0 2 * * *", timezone="Europe/Berlin")
    assert made.parameters == {"request": {"job": "nightly", "scheduled": True}}
    assert schedules(seen, "backup-job/by-hand@kvm7") == {}
    assert set(schedules(seen, "upkeep-repository/kvm7")) == {"vmcellar"}
    shared: Any = seen.client.read_global_concurrency_limit_by_name("vmcellar-shared-san-a")
    assert shared.limit == 3

    again = asyncio.run(registration.plan(cellar.config, "kvm7"))
    assert (again.new, again.gone) == ([], [])
    assert asyncio.run(registration.schedule_changes(cellar.config, "kvm7")) == []

    fewer = make_cellar(backups=JOBS[1:]).config
    with pytest.raises(UsageError) as refused:
        deploy(cellar)
    assert "--yes" in str(refused.value.hint)
    other = asyncio.run(registration.plan(fewer, "kvm8"))
    assert other.gone == [], "another host's deployments are its own"
    assert [name for name, _ in asyncio.run(registration.plan(fewer, "kvm7")).gone] == ["backup-job/nightly@kvm7"]
    asyncio.run(registration.register(fewer, "kvm7"))
    with pytest.raises(ObjectNotFound):
        seen.client.read_deployment_by_name("backup-job/nightly@kvm7")


def test_what_people_changed_in_the_ui_stays_and_advised_schedules_survive_a_deploy(
    seen: Seen, make_cellar: CellarFactory
) -> None:
    cellar = make_cellar(backups=JOBS)
    asyncio.run(registration.register(cellar.config, "kvm9"))
    nightly = seen.client.read_deployment_by_name("backup-job/nightly@kvm9")
    seen.client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=False)
    theirs: list[tuple[SCHEDULE_TYPES, bool]] = [(CronSchedule(cron="5 5 * * *", timezone="UTC"), True)]
    seen.client.create_deployment_schedules(nightly.id, theirs, slug="theirs")
    write_advised(cellar.config.state, [Advised(job="nightly", schedule=Schedule(cron="30 3 * * *"), why="quieter")])

    changed = asyncio.run(reconcile_schedules(Schedules(config=str(cellar.file), where="kvm9")))
    assert changed == ["change vmcellar of backup-job/nightly@kvm9: 30 3 * * *"]
    asyncio.run(registration.register(cellar.config, "kvm9"))
    found = schedules(seen, "backup-job/nightly@kvm9")
    assert set(found) == {"vmcellar", "theirs"}
    assert found["vmcellar"].schedule.cron == "30 3 * * *"
    assert not found["vmcellar"].active, "somebody paused it"
    assert asyncio.run(reconcile_schedules(Schedules(config=str(cellar.file), where="kvm9"))) == []


def test_deploy_leaves_alone_what_people_turned_off(
    seen: Seen, environment: dict[str, str], make_cellar: CellarFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deployments, schedules and automations; also where the definition of what they turned off has changed."""
    monkeypatch.setenv("PREFECT_API_URL", environment["PREFECT_API_URL"])
    cellar = make_cellar(backups=JOBS)
    assert f"new       automation {FAILED}" in deploy(cellar, "--dry-run", host="kvm1")
    assert automations(seen) == {}
    deploy(cellar, host="kvm1")
    made = automations(seen)
    assert {name: each.enabled for name, each in made.items()} == {FAILED: True, BAD: True}
    nightly, often = (seen.client.read_deployment_by_name(f"backup-job/{name}@kvm1") for name in ("nightly", "often"))

    seen.client.pause_deployment(nightly.id)
    seen.client.update_deployment_schedule(often.id, often.schedules[0].id, active=False)
    seen.client.pause_automation(made[BAD].id)
    off = [
        "deployment backup-job/nightly@kvm1",
        "schedule vmcellar of backup-job/often@kvm1",
        f"automation {BAD}",
    ]
    said = deploy(cellar, host="kvm1")
    assert "automation" not in said.replace(f"off       automation {BAD}", ""), "nothing is new, nothing changes"
    assert [line for line in said.splitlines() if line.startswith("off")] == [
        f"off       {each}: turned off on the server, and stays so" for each in off
    ]
    assert seen.client.read_deployment_by_name("backup-job/nightly@kvm1").paused
    assert not seen.client.read_deployment_by_name("backup-job/often@kvm1").paused
    assert not schedules(seen, "backup-job/often@kvm1")["vmcellar"].active
    assert {name: (each.id, each.enabled) for name, each in automations(seen).items()} == {
        FAILED: (made[FAILED].id, True),
        BAD: (made[BAD].id, False),
    }

    monkeypatch.setattr("deployments.wanted.ANOMALY", "another.event")
    changed = json.loads(deploy(cellar, "--dry-run", "--json", host="kvm1"))
    assert changed["automations"] == {"new": [], "changed": [BAD], "removed": []}
    assert {each["kind"] for each in changed["off"]} == {"deployment", "schedule", "automation"}
    deploy(cellar, host="kvm1")
    now = automations(seen)
    assert now[FAILED] == made[FAILED]
    assert (now[BAD].id, now[BAD].enabled) == (made[BAD].id, False)
    assert now[BAD].trigger.expect == {UNVERIFIED, "another.event"}


def test_automations_that_nothing_wants_any_more_go(
    seen: Seen, environment: dict[str, str], make_cellar: CellarFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a job that is gone, or is to be late no more, and of proofs that nobody schedules; no other."""
    monkeypatch.setenv("PREFECT_API_URL", environment["PREFECT_API_URL"])
    start = "vmcellar-late1: "
    names = {job: f"{start}run job {job} at once when a VM of it is late" for job in ("nightly", "often", "by-hand")}
    proofs, theirs = f"{start}prove at once when a VM is unproven", f"{start}call me"
    prompt = [{**job, "rpo": "26h"} for job in JOBS]
    cellar = make_cellar(backups=prompt, maintenance={"prove": "0 3 * * *"})
    said = deploy(cellar, host="late1")
    acting = {names["nightly"], names["often"], proofs}
    assert {line.partition("automation ")[2] for line in said.splitlines() if "automation" in line} == {
        *acting,
        f"{start}look at once when a backup failed",
        f"{start}look at once when a point or a VM looks bad",
    }, "a job without a schedule is not run by itself"
    assert asyncio.run(there(start)).keys() >= acting
    assert "automation" not in deploy(cellar, host="late1"), "nothing is new, changed or gone"
    (failed,) = seen.client.read_automations_by_name(f"{start}look at once when a backup failed")
    own = AutomationCore(name=theirs, trigger=failed.trigger, actions=failed.actions)
    seen.client.create_automation(AutomationCore.model_validate(own.model_dump(exclude={"owner_resource"})))

    fewer = make_cellar(backups=[prompt[0], JOBS[1]])
    planned = json.loads(deploy(fewer, "--dry-run", "--json", "--yes", host="late1"))
    assert planned["automations"] == {"new": [], "changed": [], "removed": [proofs, names["often"]]}
    assert asyncio.run(there(start)).keys() >= acting, "a plan removes nothing"
    deploy(fewer, "--yes", host="late1")
    assert asyncio.run(there(start)).keys() == {
        names["nightly"],
        theirs,
        f"{start}look at once when a backup failed",
        f"{start}look at once when a point or a VM looks bad",
    }
    none = make_cellar(backups=JOBS[1:])
    assert f"remove    automation {names['nightly']}" in deploy(none, "--yes", host="late1")
    assert names["nightly"] not in asyncio.run(there(start))


async def there(start: str) -> dict[str, Any]:
    """The automations whose names begin so."""
    async with get_client() as client:
        return {each.name: each for each in await all_of(client, (start,))}


def test_an_automation_that_an_earlier_version_made_as_a_trigger_stays_disabled(seen: Seen) -> None:
    """Prefect deletes such a one, which the deployment owns, whenever the deployment is registered."""
    (watch,) = [each for each in wanted(None, "kvm2") if each.automations]
    deployment = asyncio.run(registration.put(watch))
    one = watch.automations[0]
    (made,) = seen.client.read_automations_by_name(one.name)
    assert made.enabled
    seen.client.delete_automation(made.id)
    owned = {"owner_resource": f"prefect.deployment.{deployment}"}
    seen.client.create_automation(one.made(deployment, enabled=False).model_copy(update=owned))
    for _ in range(2):
        asyncio.run(registration.put(watch))
        assert [each.enabled for each in seen.client.read_automations_by_name(one.name)] == [False]


FAILED = "vmcellar-kvm1: look at once when a backup failed"
BAD = "vmcellar-kvm1: look at once when a point or a VM looks bad"


def automations(seen: Seen) -> dict[str, Any]:
    """Those of kvm1 by name."""
    return {name: each for name in (FAILED, BAD) for each in seen.client.read_automations_by_name(name)}


def test_up_serves_the_jobs_and_stops_cleanly(make_cellar: CellarFactory, tmp_path: Path) -> None:
    cellar = make_cellar(backups=JOBS)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    command = [sys.executable, "-m", "vmcellar.cli.main", "--config", str(cellar.file), "up", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: deployed(port, process), "the scheduled deployments", seconds=120)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            assert b"<html" in answer.read().lower()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert f"the UI is at http://127.0.0.1:{port}" in (tmp_path / "log").read_text()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the server is gone"


def deployed(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "it ended by itself"
    url = f"http://127.0.0.1:{port}/api/deployments/name/backup-job/nightly"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return [each["slug"] for each in json.load(answer)["schedules"]] == ["vmcellar"]
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_does_not_answer_is_an_error(cellar: Cellar, environment: dict[str, str]) -> None:
    away = {**environment, "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    for command in ("up", "deploy"):
        done = vmcellar(cellar, away, command)
        assert done.returncode == 1, done.stderr
        assert "error: the Prefect server at" in done.stderr
        assert "PREFECT_API_URL" in done.stderr


def test_a_jobs_bandwidth_holds_for_all_that_is_read(
    seen: Seen, make_cellar: CellarFactory, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert seen
    cellar = make_cellar(backups=[{"name": "slow", "bandwidth": "1TiB/s"}])
    taken: list[int] = []
    monkeypatch.setattr(Throttle, "take", lambda _self, count, _cancel: taken.append(count))
    (point,) = asyncio.run(backup_job(BackupJob(config=str(cellar.file), vms=(flow_guest.name,), job="slow")))
    assert sum(taken) == point.bytes_read


def test_upkeep_drops_by_the_jobs_retention(
    seen: Seen, make_cellar: CellarFactory, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    cellar = make_cellar(backups=[{**JOBS[0], "domains": [flow_guest.name]}])
    request = BackupJob(config=str(cellar.file), job="nightly")
    points = [asyncio.run(backup_job(request))[0].id for _ in range(2)]
    planned = asyncio.run(upkeep_repository(Upkeep(config=str(cellar.file), dry_run=True)))
    assert (planned["kept"], planned["dropped"]) == (1, 1)
    assert [point.id for point in cellar.points(flow_guest)] == points
    with monkeypatch.context() as locked:
        locked.setattr(LocalTier, "delete", _locked)
        held = asyncio.run(upkeep_repository(Upkeep(config=str(cellar.file))))
    assert (held["kept"], held["dropped"], held["held"]) == (1, 0, 1)
    done = asyncio.run(upkeep_repository(Upkeep(config=str(cellar.file))))
    assert (done["kept"], done["dropped"], done["held"]) == (1, 1, 0)
    assert [point.id for point in cellar.points(flow_guest)] == points[1:]
    report = seen.artifacts(seen.flow_run("upkeep all points"))["upkeep"].data
    assert f"| `{points[0]}` | {flow_guest.name} | **drop** |" in str(report)
    cellar.assert_restores(points[1], cellar.reference(flow_guest))
    used = [row["tier"] for row in standing(cellar.engine.catalog)["tiers"]]
    assert used == ["hot"], "alerts go by it"


_delete = LocalTier.delete


def _locked(tier: LocalTier, key: str) -> None:
    """Each point is locked against deletion."""
    if key.startswith("points/"):
        raise LockedError(f"{tier!r}: {key} is locked")
    _delete(tier, key)


def test_a_scheduled_run_outside_its_window_is_skipped_and_touches_no_vm(
    seen: Seen, make_cellar: CellarFactory, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"name": "windowed", "domains": [flow_guest.name], "window": "02:00-03:00"}
    cellar = make_cellar(backups=[job])
    monkeypatch.setattr("flows.backup.Turns", _closed)
    with pytest.raises(CancelledRun, match=r"outside its window 02:00-03:00"):
        asyncio.run(backup_job(BackupJob(config=str(cellar.file), job="windowed", scheduled=True)))
    state = seen.flow_run("backup job windowed").state
    assert state is not None
    assert (state.name, state.is_cancelled()) == ("Skipped", True)
    assert cellar.points(flow_guest) == []
    assert len(asyncio.run(backup_job(BackupJob(config=str(cellar.file), job="windowed")))) == 1, "by hand: at any time"


def _closed(job: Any, *, spread: bool) -> Any:
    from datetime import UTC, datetime  # noqa: PLC0415  (of this one fake clock)

    from tasks.turns import Turns  # noqa: PLC0415  (not the patched one)

    return Turns(job, lambda: datetime(2026, 11, 28, 12, 0, tzinfo=UTC), spread=spread)
