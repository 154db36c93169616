"""What becomes of a run when something fails between two of its steps: the VM is let go, and a retry does no harm."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

import flows.backup as flow
from flows.parameters import BackupVm
from tasks import control, lost
from tests.backup.world import SIZE, EmptySource, again
from vmcellar.backup import pipeline, recover, stages, wanted_full
from vmcellar.backup.model import BackupRequest, ExportResult, PointSummary, RunHandle
from vmcellar.cli.hostlocks import held_locks
from vmcellar.engine import Engine
from vmcellar.errors import CancelledError, IntegrityError, PermanentError, TransientError
from vmcellar.progress import CancelToken
from vmcellar.repository.layout import POINTS
from vmcellar.tiers.local import LocalTier

REQUEST = BackupRequest("vm")


def test_a_whole_run_leaves_a_point_and_nothing_held(engine: Engine, source: EmptySource) -> None:
    summary = pipeline.run(engine, REQUEST)
    assert [point.id for point in engine.repository.points_of("vm")] == [summary.id]
    assert not source.held
    assert engine.run_directories() == []


@pytest.mark.parametrize("vm", ["Сервер базы данных " * 12, "😀" * 60, "-", "a b", "/%2f"])
def test_a_vm_of_any_name_is_backed_up_and_asked_for_a_full_one(engine: Engine, vm: str) -> None:
    """Some letters take more bytes in a file's name than in the VM's."""
    with engine.vm_lock(vm):
        (held,) = held_locks(engine.state)
        assert (held.vm, held.pid) == (vm, str(os.getpid()))
        with pytest.raises(TransientError, match=rf"pid {os.getpid()}\) is working on it"), engine.vm_lock(vm):
            pass
    summary = pipeline.run(engine, BackupRequest(vm))
    assert [point.id for point in engine.repository.points_of(vm)] == [summary.id]
    wanted_full.ask(engine.state, vm, "a doubt", engine.repository.point(summary.id).time)
    assert wanted_full.asked(engine.state, vm, engine.repository.points_of(vm)) == "a doubt"


def test_a_backup_says_that_a_point_of_a_clock_that_was_ahead_is_called_latest(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: time.time_ns() / 1e9 + 86400)
        tomorrow = pipeline.run(engine, REQUEST)
        assert tomorrow.warnings == ()
    summary = pipeline.run(engine, REQUEST)
    assert any(f"point {tomorrow.id} is of a later time" in warning for warning in summary.warnings)
    assert "vm@latest names it" in summary.warnings[0]


def test_who_does_not_know_whether_a_run_began_can_let_the_vm_go(engine: Engine, source: EmptySource) -> None:
    stages.snapshot(engine, REQUEST, CancelToken())
    stages.snapshot(engine, BackupRequest("other"), CancelToken())
    stages.let_vm_go(engine, "vm")
    assert [held.result.vm for held in source.held.values()] == ["other"]


def test_a_commit_that_is_tried_again_makes_one_point(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    stages.release(engine, handle.run_id)
    put = LocalTier.put

    def appears_and_fails(tier: LocalTier, key: str, data: bytes) -> None:
        put(tier, key, data)
        if key.startswith(POINTS):
            monkeypatch.setattr(LocalTier, "put", put)
            raise TransientError(f"{key}: its folder could not be made durable")

    monkeypatch.setattr(LocalTier, "put", appears_and_fails)
    with pytest.raises(TransientError, match="made durable"):
        stages.commit(engine, handle.run_id)
    stages.commit(engine, handle.run_id)
    assert len(engine.repository.points_of("vm")) == 1


def test_a_commit_finds_its_point_that_could_not_be_taken_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    stages.release(engine, handle.run_id)
    put, delete = LocalTier.put, LocalTier.delete

    def appears_and_fails(tier: LocalTier, key: str, data: bytes) -> None:
        put(tier, key, data)
        if key.startswith(POINTS):
            raise TransientError(f"{key}: its folder could not be made durable")

    def fails(tier: LocalTier, key: str) -> None:
        if key.startswith(POINTS):
            raise TransientError(f"{key}: the storage is away")
        delete(tier, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalTier, "put", appears_and_fails)
        patch.setattr(LocalTier, "delete", fails)
        with pytest.raises(TransientError, match="made durable"):
            stages.commit(engine, handle.run_id)
    (left,) = again(engine).repository.points_of("vm")
    summary = stages.commit(engine, handle.run_id)
    assert [point.id for point in again(engine).repository.points_of("vm")] == [summary.id] == [left.id]
    assert engine.run_directories() == []


def test_a_commit_killed_after_its_point_was_written_is_not_done_twice(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    stages.release(engine, handle.run_id)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vmcellar.backup.commit._tidy", killed)
        with pytest.raises(KeyboardInterrupt):
            stages.commit(engine, handle.run_id)
    later = again(engine)
    assert later.run_directory(handle.run_id).path.is_dir()
    summary = stages.commit(later, handle.run_id)
    assert [point.id for point in again(engine).repository.points_of("vm")] == [summary.id]


def test_a_commit_overwrites_no_other_point_of_its_id(engine: Engine) -> None:
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    stages.release(engine, handle.run_id)
    directory = engine.run_directory(handle.run_id)
    saved = {path.name: path.read_bytes() for path in directory.path.iterdir()}
    first = stages.commit(engine, handle.run_id)
    directory.create()
    for name, data in saved.items():
        (directory.path / name).write_bytes(data.replace(b'"crash"', b'"quiesced"'))
    with pytest.raises(IntegrityError, match=f"a restore point {first.id} already"):
        stages.commit(again(engine), handle.run_id)
    (point,) = again(engine).repository.points_of("vm")
    assert (point.id, point.consistency) == (first.id, "crash")


def test_a_run_whose_job_could_not_be_ended_fails_with_its_own_error(engine: Engine, source: EmptySource) -> None:
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    source.away = True
    stages.give_up(engine, handle.run_id, TransientError("the tier is away"))
    source.away = False
    assert stages.snapshot(engine, REQUEST, CancelToken()).resumed
    stages.release(engine, handle.run_id)
    assert not source.held


def test_recover_finds_a_vm_without_a_point_whose_job_outlived_its_run(engine: Engine, source: EmptySource) -> None:
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    source.away = True
    stages.abandon(engine, handle.run_id, "libvirt went away")
    source.away = False
    assert source.held
    later = again(engine)
    assert [action.action for action in stages.recover(later)] == ["job-aborted"]
    assert not source.held


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_run_whose_files_are_damaged_stops_no_further_backup(
    engine: Engine, source: EmptySource, damage: bytes | None
) -> None:
    source.full = True
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    directory = engine.run_directory(handle.run_id)
    directory.save("vda.0000.export.json", ExportResult("vda", 0, SIZE, 0, 0, SIZE, 1.0))
    if damage is not None:
        (directory.path / "vda.0000.export.npz").write_bytes(damage)
    source.full = False
    later = again(engine)
    summary = pipeline.run(later, REQUEST)
    assert summary.run_id != handle.run_id
    assert not source.held


def test_a_dead_run_that_endangers_its_guest_is_ended_by_recover(engine: Engine, source: EmptySource) -> None:
    source.full = True
    stages.snapshot(engine, REQUEST, CancelToken())
    assert [action.action for action in stages.recover(again(engine), resume=True)] == ["resumable"]
    assert source.held
    source.used = 95
    assert [action.action for action in stages.recover(again(engine), resume=True)] == ["abandoned"]
    assert not source.held


def test_recover_lets_the_vm_of_a_dead_run_go_unless_it_is_to_be_resumed(engine: Engine, source: EmptySource) -> None:
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    kept = again(engine)
    assert [(action.run_id, action.action) for action in stages.recover(kept, resume=True)] == [
        (handle.run_id, "resumable")
    ]
    assert source.held
    assert stages.snapshot(kept, REQUEST, CancelToken()).resumed, "a backup goes on with it"
    assert [(action.run_id, action.action) for action in stages.recover(again(engine))] == [
        (handle.run_id, "abandoned")
    ]
    assert not source.held
    assert again(engine).run_directories() == []
    assert pipeline.run(again(engine), REQUEST).run_id != handle.run_id


def test_recover_undoes_nothing_and_fails_while_libvirt_is_away(engine: Engine, source: EmptySource) -> None:
    stages.snapshot(engine, REQUEST, CancelToken())
    source.away = True
    with pytest.raises(TransientError, match="libvirt is away"):
        stages.recover(again(engine))
    assert engine.run_directories()
    source.away = False
    stages.recover(again(engine))
    assert not source.held


def test_jobs_that_go_on_without_prefect_are_told_apart(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once, one of which got as far as its point, while the command line looks on."""
    monkeypatch.setattr(lost, "engine_of", lambda _config: engine)
    together = threading.Barrier(2)

    async def prefect_fails(*, point: PointSummary | None) -> PointSummary:
        await asyncio.to_thread(together.wait, 60)
        if point is not None:
            with control.activity("", point.vm) as work:
                work.point = point
        raise httpx.ConnectError("All connection attempts failed")

    async def both(done: PointSummary) -> list[PointSummary]:
        both_points = await asyncio.gather(
            lost.or_without("", BackupRequest("done"), prefect_fails(point=done)),
            lost.or_without("", REQUEST, prefect_fails(point=None)),
        )
        return list(both_points)

    with control.witnessed() as ended:
        done = pipeline.run(engine, BackupRequest("done"))
        points = asyncio.run(both(done))
    assert points[0] == done
    assert [point.id for point in engine.repository.points_of("vm")] == [points[1].id]
    assert {vm: work.point for vm, work in ended.items()} == {"done": done, "vm": points[1]}
    assert len(engine.repository.points_of("done")) == 1


def test_a_cancel_stops_a_backup_that_goes_on_without_prefect(
    engine: Engine, source: EmptySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "engine_of", lambda _config: engine)
    begun, stopped = threading.Event(), threading.Event()
    snapshot = stages.snapshot

    def waits(*arguments: Any) -> RunHandle:
        begun.set()
        assert stopped.wait(60)
        return snapshot(*arguments)

    monkeypatch.setattr(stages, "snapshot", waits)

    async def prefect_fails() -> PointSummary:
        raise httpx.ConnectError("All connection attempts failed")

    async def cancelled() -> None:
        going = asyncio.create_task(lost.or_without("", REQUEST, prefect_fails()))
        await asyncio.to_thread(begun.wait, 60)
        going.cancel()
        await asyncio.sleep(0)
        stopped.set()
        with pytest.raises(CancelledError):
            await going

    asyncio.run(cancelled())
    assert not source.held
    assert engine.repository.points_of("vm") == []


def test_a_full_tier_is_cleared_of_what_dead_runs_staged_before_a_backup_gives_up(
    engine: Engine, source: EmptySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead run is another VM's; without any, the tier is just full."""
    source.full = True
    dead = stages.snapshot(engine, BackupRequest("other"), CancelToken())
    engine.pack_writer(dead.run_id, "none").abort()
    (engine.staging(dead.run_id) / "pack").write_bytes(bytes(SIZE))
    source.full = False
    source.held.clear()
    put = LocalTier.put

    def puts_when_there_is_room(tier: LocalTier, key: str, data: bytes) -> None:
        if engine.staged_runs():
            raise PermanentError(f"{key}: no space left", hint="free some")
        put(tier, key, data)

    monkeypatch.setattr(LocalTier, "put", puts_when_there_is_room)
    assert pipeline.run(again(engine), REQUEST).verified
    assert engine.staged_runs() == []
    (engine.staging("held").parent / "held").mkdir()
    monkeypatch.setattr(recover, "_drop_orphans", lambda _engine: [])
    with pytest.raises(PermanentError, match="no space left"):
        pipeline.run(again(engine), REQUEST)


def test_a_run_is_not_settled_while_nobody_knows_whether_its_instant_is_held(
    engine: Engine, source: EmptySource
) -> None:
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    source.away = True
    with pytest.raises(TransientError, match="libvirt is away"):
        stages.snapshot(again(engine), REQUEST, CancelToken())
    source.away = False
    later = again(engine)
    assert stages.snapshot(later, REQUEST, CancelToken()).resumed
    stages.release(later, handle.run_id)
    assert not source.held


def test_the_flow_lets_the_vm_go_when_prefect_fails_after_the_snapshot(
    engine: Engine, source: EmptySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingThreads:
        """Prefect whose server goes while the stage runs."""

        def __init__(self, cancel: CancelToken, workers: int) -> None:
            assert workers
            self.cancel = cancel

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        async def run(self, *_: Any, **__: Any) -> Any:
            stages.snapshot(engine, REQUEST, self.cancel)
            raise ConnectionError("the server is gone")

    monkeypatch.setattr(flow, "TaskThreads", FailingThreads)
    monkeypatch.setattr(flow, "engine_of", lambda _: engine)
    with pytest.raises(ConnectionError):
        asyncio.run(flow.backup_vm.fn(BackupVm(vm="vm")))
    assert not source.held


def test_a_damaged_point_of_one_vm_stops_no_backup_of_another(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pitfall 22: what is damaged is named, and stops only what needs it."""
    old = pipeline.run(engine, BackupRequest("old-vm"))
    path = tmp_path / "hot" / POINTS / old.id
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))
    later = again(engine)
    first = pipeline.run(later, REQUEST)
    second = pipeline.run(later, REQUEST)
    assert [point.id for point in later.repository.points_of("vm")] == [first.id, second.id]
    assert any(old.id in record.getMessage() for record in caplog.records)
    with pytest.raises(IntegrityError, match=old.id):
        later.repository.points()
    with pytest.raises(IntegrityError, match=old.id):
        later.repository.point(old.id)
