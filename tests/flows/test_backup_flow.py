"""`backup_vm` and `backup_job` against a real server and a real domain: the DAG, its names, retries, what turns red."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from flows.backup import backup_job, backup_vm
from flows.parameters import BackupJob, BackupVm
from lab.guest import LabGuest
from tasks import backup as tasks
from tests.flows.seen import Seen, upstream
from tests.proof.cellar import MIB, Cellar
from vmcellar.backup import stages
from vmcellar.backup.model import PointSummary
from vmcellar.errors import IntegrityError, PermanentError, TransientError

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]

SEGMENTS = ("vda 1/2", "vda 2/2", "vdb 1/1")
STAGES = ("compress", "place", "verify")


def back_up(cellar: Cellar, vm: str, **request: Any) -> PointSummary:
    """Run the flow of one VM in this process."""
    return asyncio.run(backup_vm(BackupVm(config=str(cellar.file), vm=vm, **request)))


def back_up_all(cellar: Cellar, *vms: str, **request: Any) -> list[PointSummary]:
    """Run the flow of several VMs in this process."""
    return asyncio.run(backup_job(BackupJob(config=str(cellar.file), vms=vms, **request)))


def failing(times: int, error: Exception, stage: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """A stage that fails the first `times` times; its calls are counted."""
    calls: list[int] = []

    def fail_first(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return stage(*arguments)

    return fail_first, calls


def test_the_dag_of_a_backup(seen: Seen, cellar: Cellar, flow_guest: LabGuest) -> None:
    point = back_up(cellar, flow_guest.name)
    assert (point.kind, point.verified, point.uncovered) == ("full", True, ())
    run = seen.flow_run(f"backup {flow_guest.name} auto")
    assert run.state is not None
    assert run.state.is_completed()
    exports = {f"export {segment}" for segment in SEGMENTS}
    ends = {f"snapshot {flow_guest.name}", f"release {flow_guest.name}", f"commit {flow_guest.name}"}
    chains = {f"{stage} {segment}" for stage in STAGES for segment in SEGMENTS}
    found = seen.tasks(run, sorted(exports | ends | chains))
    assert set(found) == exports | ends | chains
    assert upstream(found[f"release {flow_guest.name}"], found) == exports, "release waits for the exports alone"
    for segment in SEGMENTS:
        order = ["export", *STAGES]
        for before, after in itertools.pairwise(order):
            assert upstream(found[f"{after} {segment}"], found) == {f"{before} {segment}"}
    verified = {f"verify {segment}" for segment in SEGMENTS}
    assert upstream(found[f"commit {flow_guest.name}"], found) == {f"release {flow_guest.name}"} | verified
    cellar.assert_restores(point.id, cellar.reference(flow_guest))
    cellar.assert_nothing_left(flow_guest)


def test_the_report_of_a_backup(seen: Seen, cellar: Cellar, flow_guest: LabGuest) -> None:
    point = back_up(cellar, flow_guest.name, mode="full")
    made = seen.artifacts(seen.flow_run(f"backup {flow_guest.name} full"))
    report = made[f"backup-{flow_guest.name}"]
    assert report.type == "markdown"
    assert point.id in str(report.data)
    assert all(target in str(report.data) for target in ("vda", "vdb", "vdc"))


def test_a_transient_error_is_retried(
    seen: Seen, cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch, quick_retries: None
) -> None:
    flaky, calls = failing(2, TransientError("lost the connection", hint="wait"), stages.place)
    monkeypatch.setattr(stages, "place", flaky)
    point = back_up(cellar, flow_guest.name)
    assert len(calls) == len(SEGMENTS) + 2
    cellar.assert_restores(point.id, cellar.reference(flow_guest))
    found = seen.tasks(seen.flow_run(f"backup {flow_guest.name} auto"), [f"place {segment}" for segment in SEGMENTS])
    counts = [found[f"place {segment}"].run_count for segment in SEGMENTS]
    assert sum(counts) == len(SEGMENTS) + 2


@pytest.mark.parametrize("kind", [PermanentError, IntegrityError])
def test_what_no_retry_mends_fails_at_once(
    seen: Seen,
    cellar: Cellar,
    flow_guest: LabGuest,
    monkeypatch: pytest.MonkeyPatch,
    quick_retries: None,
    kind: type[PermanentError],
) -> None:
    broken, calls = failing(100, kind("the tier is full", hint="free some space"), stages.place)
    monkeypatch.setattr(stages, "place", broken)
    with pytest.raises(kind, match="the tier is full"):
        back_up(cellar, flow_guest.name)
    assert len(calls) <= len(SEGMENTS), "a retry"
    assert cellar.points(flow_guest) == []
    cellar.assert_let_go(flow_guest)
    run = seen.flow_run(f"backup {flow_guest.name} auto")
    assert run.state is not None
    assert run.state.is_failed()
    assert "the tier is full" in str(run.state.message)
    back = [name for name, task in seen.tasks(run, []).items() if task.run_count > 1]
    assert back == []


def test_retries_end(
    cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch, quick_retries: None, seen: Seen
) -> None:
    """Once all has landed, a run that gives up on a transient error is kept: the next one does not need the VM."""
    broken, calls = failing(1000, TransientError("no answer", hint="wait"), stages.commit)
    monkeypatch.setattr(stages, "commit", broken)
    with pytest.raises(TransientError, match="no answer"):
        back_up(cellar, flow_guest.name)
    assert len(calls) == 1 + tasks.commit.retries
    assert not cellar.points(flow_guest)
    monkeypatch.undo()
    flow_guest.poke("vda", 0, MIB, seed=77)
    exported: list[bool] = []
    real = stages.export

    def noting(*arguments: Any) -> Any:
        exported.append(True)
        return real(*arguments)

    monkeypatch.setattr(stages, "export", noting)
    back_up(cellar, flow_guest.name)
    assert exported == [], "landed segments come from Prefect's cache"


def test_a_cached_export_is_not_trusted(
    cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch, quick_retries: None, seen: Seen
) -> None:
    """Prefect has all exports in its cache; what one of them had landed is gone. It is read again, the others not."""
    exported: list[tuple[str, int]] = []
    real = stages.export

    def noting(engine: Any, run: str, target: str, segment: int, *more: Any) -> Any:
        exported.append((target, segment))
        return real(engine, run, target, segment, *more)

    lost = TransientError("the helper died", hint="try again")
    monkeypatch.setattr(stages, "export", noting)
    monkeypatch.setattr(stages, "compress", failing(1000, lost, stages.compress)[0])
    monkeypatch.setattr(stages, "release", failing(1000, lost, stages.release)[0])
    monkeypatch.setattr(stages, "give_up", lambda *_: None)  # the process dies here, as far as the run can tell
    with pytest.raises(TransientError):
        back_up(cellar, flow_guest.name)
