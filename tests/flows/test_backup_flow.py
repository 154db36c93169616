"""`backup_vm` and `backup_job` against a real server and a real domain: the DAG, its names, retries, what turns red."""

from __future__ import annotations

import asyncio
import itertools
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import libvirt
import pytest

import flows.backup as flow
from flows.backup import backup_job, backup_vm
from flows.parameters import BackupJob, BackupVm
from lab.disks import DiskSpec, make_image
from lab.domain import disk_element
from lab.guest import LabGuest
from tasks import backup as tasks
from tests.flows.conftest import CellarFactory
from tests.flows.seen import Seen, upstream
from tests.proof.cellar import MIB, Cellar, job_runs
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


def failing(error: Exception, stage: Callable[..., Any], times: int = 1000) -> tuple[Callable[..., Any], list[Any]]:
    """A stage that fails the first `times` times, and its calls."""
    noting, calls = noted(stage)

    def fail_first(*arguments: Any) -> Any:
        if len(calls) < times:
            calls.append(arguments)
            raise error
        return noting(*arguments)

    return fail_first, calls


def noted(stage: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """A stage and its calls."""
    calls: list[Any] = []

    def noting(*arguments: Any) -> Any:
        calls.append(arguments)
        return stage(*arguments)

    return noting, calls


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


def test_hooks_run_around_the_dag_and_one_that_fails_makes_the_run_red(
    seen: Seen, make_cellar: CellarFactory, flow_guest: LabGuest, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    hooks = [{"when": when, "run": f"echo $VMCELLAR_WHEN >> {note}"} for when in ("before", "thawed", "after")]
    cellar = make_cellar(backups=[{"name": "mine", "hooks": [*hooks, {"when": "after", "run": "echo oh; exit 3"}]}])
    with pytest.raises(PermanentError, match="is committed, but hook after `echo oh; exit 3`: exit code 3: oh"):
        back_up(cellar, flow_guest.name, job="mine")
    assert note.read_text().split() == ["before", "thawed", "after"]
    assert len(cellar.new_engine().repository.points_of(flow_guest.name)) == 1
    assert seen.flow_run(f"backup {flow_guest.name} auto").state_name == "Failed"


def test_the_report_of_a_backup(seen: Seen, cellar: Cellar, flow_guest: LabGuest) -> None:
    point = back_up(cellar, flow_guest.name, mode="full")
    made = seen.artifacts(seen.flow_run(f"backup {flow_guest.name} full"))
    report = made[f"backup-{flow_guest.name}"]
    assert report.type == "markdown"
    assert point.id in str(report.data)
    assert all(target in str(report.data) for target in ("vda", "vdb", "vdc"))


@pytest.mark.usefixtures("quick_retries")
def test_a_transient_error_is_retried(
    seen: Seen, cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky, calls = failing(TransientError("lost the connection", hint="wait"), stages.place, times=2)
    monkeypatch.setattr(stages, "place", flaky)
    point = back_up(cellar, flow_guest.name)
    assert len(calls) == len(SEGMENTS) + 2
    cellar.assert_restores(point.id, cellar.reference(flow_guest))
    found = seen.tasks(seen.flow_run(f"backup {flow_guest.name} auto"), [f"place {segment}" for segment in SEGMENTS])
    counts = [found[f"place {segment}"].run_count for segment in SEGMENTS]
    assert sum(counts) == len(SEGMENTS) + 2


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("kind", [PermanentError, IntegrityError])
def test_what_no_retry_mends_fails_at_once(
    seen: Seen,
    cellar: Cellar,
    flow_guest: LabGuest,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[PermanentError | IntegrityError],
) -> None:
    broken, _ = failing(kind("the tier is full", hint="free some space"), stages.place)
    monkeypatch.setattr(stages, "place", broken)
    with pytest.raises(kind, match="the tier is full"):
        back_up(cellar, flow_guest.name)
    assert cellar.points(flow_guest) == []
    cellar.assert_let_go(flow_guest)
    run = seen.flow_run(f"backup {flow_guest.name} auto")
    assert run.state is not None
    assert run.state.is_failed()
    assert "the tier is full" in str(run.state.message)
    counts = {task.run_count for task in seen.tasks(run, [f"snapshot {flow_guest.name}"]).values()}
    assert max(counts) == 1, "something was tried again"


@pytest.mark.usefixtures("quick_retries")
def test_a_kept_run_needs_no_export(
    seen: Seen, cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends on a transient error once all has landed is kept, and Prefect shows its exports as cached."""
    broken, calls = failing(TransientError("no answer", hint="wait"), stages.commit)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "commit", broken)
        with pytest.raises(TransientError, match="no answer"):
            back_up(cellar, flow_guest.name)
    assert len(calls) == 1 + tasks.commit.retries
    assert cellar.points(flow_guest) == []
    expected = cellar.reference(flow_guest)
    flow_guest.poke("vda", 2 * MIB, MIB, seed=77)
    noting, exported = noted(stages.export)
    monkeypatch.setattr(stages, "export", noting)
    point = back_up(cellar, flow_guest.name)
    assert exported == []
    run = seen.flow_run(f"backup {flow_guest.name} auto")
    names = [f"export {segment}" for segment in SEGMENTS]
    found = seen.tasks(run, [*names, f"commit {flow_guest.name}"])
    assert {found[name].state_name for name in names} == {"Cached"}
    cellar.assert_restores(point.id, expected)


def test_a_cached_export_is_not_trusted(
    seen: Seen, make_cellar: CellarFactory, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect has all exports in its cache, but the landing file of one is gone: that is read again, and no other."""
    cellar = make_cellar(landing={"direct": 0})
    expected = cellar.reference(flow_guest)
    with monkeypatch.context() as patch:
        die_when_all_has_landed(patch)
        with pytest.raises(PermanentError, match="the process dies"):
            back_up(cellar, flow_guest.name)
    assert job_runs(flow_guest)
    landed = sorted(path for path in cellar.config.landing.dir.rglob("*") if path.is_file())
    assert len(landed) == len(SEGMENTS)
    next(path for path in landed if "vdb" in path.name).unlink()
    noting, exported = noted(stages.export)
    monkeypatch.setattr(stages, "export", noting)
    point = back_up(cellar, flow_guest.name)
    assert [call[2:4] for call in exported] == [("vdb", 0)]
    run = seen.flow_run(f"backup {flow_guest.name} auto")
    found = seen.tasks(run, [f"export {segment}" for segment in SEGMENTS])
    states = {segment: found[f"export {segment}"].state_name for segment in SEGMENTS}
    assert states == {**dict.fromkeys(SEGMENTS, "Cached"), "vdb 1/1": "Completed"}
    cellar.assert_restores(point.id, expected)


def die_when_all_has_landed(patch: pytest.MonkeyPatch) -> None:
    """As far as the run can tell, its process dies as soon as every export has ended, before any compression."""
    dead = threading.Event()

    def die(*_: Any) -> None:
        dead.set()
        raise PermanentError("the process dies", hint="none")

    def wait_for_death(*_: Any) -> None:
        assert dead.wait(60)
        raise PermanentError("the process dies", hint="none")

    patch.setattr(stages, "release", die)
    patch.setattr(stages, "compress", wait_for_death)
    patch.setattr(stages, "give_up", lambda *_: None)


def test_one_vm_that_fails_does_not_stop_the_other(seen: Seen, cellar: Cellar, flow_guest: LabGuest) -> None:
    with pytest.raises(PermanentError, match="nonesuch: no such VM"):
        back_up_all(cellar, "nonesuch", flow_guest.name)
    (point,) = cellar.points(flow_guest)
    run = seen.flow_run(f"backup nonesuch, {flow_guest.name}")
    assert run.state is not None
    assert run.state.is_failed()
    assert "nonesuch" in str(run.state.message)
    report = str(seen.artifacts(run)["job-backup"].data)
    assert "1 of 2 VMs" in report
    assert report.index("nonesuch") < report.index(point.id), "what failed comes first"


def test_all_vms_that_fail_are_named(seen: Seen, cellar: Cellar) -> None:
    assert seen
    with pytest.raises(PermanentError, match=r"2 of 2 VMs .*: nonesuch: no such VM.*; neither: no such VM"):
        back_up_all(cellar, "nonesuch", "neither")


@pytest.mark.parametrize("told", ["nothing", "all but the end"])
def test_a_job_goes_on_without_a_server_that_is_lost(
    seen: Seen, cellar: Cellar, flow_guest: LabGuest, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """Prefect fails a VM's flow before its work, or after it: either way there is one point, and the job is green."""
    backing_up = flow.backup_vm

    async def lost(request: BackupVm) -> PointSummary:
        if told != "nothing":
            await backing_up(request)
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(flow, "backup_vm", lost)
    (point,) = back_up_all(cellar, flow_guest.name)
    assert [each.id for each in cellar.points(flow_guest)] == [point.id]
    state = seen.flow_run(f"backup {flow_guest.name}").state
    assert state is not None
    assert state.is_completed()
    with pytest.raises(PermanentError, match="no such VM"):
        back_up_all(cellar, "nonesuch")
    cellar.assert_nothing_left(flow_guest)


def test_a_vm_that_is_off_is_listed_and_red_until_it_has_a_point(
    seen: Seen, make_cellar: CellarFactory, flow_guest: LabGuest, make_guest: Callable[..., LabGuest]
) -> None:
    off = make_guest((DiskSpec("vda", 4 * MIB),))
    cellar = make_cellar(backups=[{"name": "nightly", "domains": [flow_guest.name, off.name]}])
    with pytest.raises(PermanentError, match="no verified restore point at all") as raised:
        back_up_all(cellar, job="nightly")
    assert raised.value.message.startswith(f"{off.name}: the VM is off")
    assert f"virsh start {off.name}" in raised.value.hint
    assert f'"!{off.name}"' in raised.value.hint
    (point,) = cellar.points(flow_guest)
    report = job_report(seen)
    assert "1 of 2 VMs" in report
    assert report.index(f"| {off.name} | **failed**") < report.index(point.id)

    off.start(paused=True)
    old = cellar.backup(off)
    off.domain.destroy()
    (new,) = back_up_all(cellar, job="nightly")
    assert new.vm == flow_guest.name
    report = job_report(seen)
    assert f"| {off.name} | off: nothing new was read; its newest verified point is {old.id} of " in report
    assert "failed" not in report


def test_a_job_whose_vms_are_all_off_is_green_with_their_points(
    seen: Seen, make_cellar: CellarFactory, make_guest: Callable[..., LabGuest]
) -> None:
    off = make_guest((DiskSpec("vda", 4 * MIB),))
    cellar = make_cellar(backups=[{"name": "nightly", "domains": [off.name]}, {"name": "no", "domains": ["no-*"]}])
    off.start(paused=True)
    old = cellar.backup(off)
    off.domain.destroy()
    assert back_up_all(cellar, job="nightly") == []
    assert old.id in job_report(seen)
    with pytest.raises(PermanentError, match="no VM matches domains: no-"):
        back_up_all(cellar, job="no")


def job_report(seen: Seen) -> str:
    """The newest run's report of the job `nightly`."""
    return str(seen.artifacts(seen.flow_run("backup job nightly"))["job-nightly"].data)


def test_a_disk_that_is_not_covered_turns_the_run_red(
    seen: Seen, cellar: Cellar, make_guest: Callable[..., LabGuest]
) -> None:
    guest = make_guest((DiskSpec("vda", 4 * MIB),))
    spec = DiskSpec("vdd", 4 * MIB, format="raw")
    image = guest.folder / "shared.raw"
    make_image(spec, image)
    shared = disk_element(spec, image)
    ET.SubElement(shared, "shareable")
    guest.domain.attachDeviceFlags(ET.tostring(shared, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    guest.start(paused=True)
    with pytest.raises(PermanentError, match="does not hold every disk: vdd: shareable"):
        back_up(cellar, guest.name)
    run = seen.flow_run(f"backup {guest.name} auto")
    assert run.state is not None
    assert run.state.is_failed()
    (point,) = cellar.points(guest)
    assert point.verified
    assert back_up(cellar, guest.name, exclude_disks=("vdd",)).uncovered == ()
