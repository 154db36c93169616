"""A point whose commit failed or died before its last look, and could not take it back: settled before the next backup.

The next backup of the VM, or `recover`, on the same host looks at all that the point needs: it stays when nothing of
that can go any more, else it is taken back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.backup.world import EmptySource, again
from vmcellar.backup import pipeline, stages
from vmcellar.backup.model import BackupRequest
from vmcellar.backup.rundir import COMMITTED, RunDirectory
from vmcellar.engine import Engine
from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.progress import CancelToken
from vmcellar.repository.layout import INDEX, META, POINTS
from vmcellar.repository.scrub import verify_all
from vmcellar.tiers.base import Tier
from vmcellar.tiers.local import LocalTier
from vmcellar.upkeep import pins

REQUEST = BackupRequest("vm")


def lose_pack(tier: Tier) -> None:
    """What a gc does that deletes what the point relies on."""
    for prefix in (INDEX, META):
        for key, _ in list(tier.list(prefix)):
            tier.delete(key)


def fail_after_the_point(
    monkeypatch: pytest.MonkeyPatch, error: VmcellarError | None, meanwhile: Callable[[Tier], None]
) -> None:
    """As the point is written: `meanwhile`, then `error`, and the storage is away for what takes it back."""
    put, delete = LocalTier.put, LocalTier.delete

    def puts(tier: LocalTier, key: str, data: bytes) -> None:
        put(tier, key, data)
        if key.startswith(POINTS):
            meanwhile(tier)
            if error is not None:
                raise error

    def deletes(tier: LocalTier, key: str) -> None:
        if key.startswith(POINTS):
            raise TransientError(f"{key}: the storage is away")
        delete(tier, key)

    monkeypatch.setattr(LocalTier, "put", puts)
    monkeypatch.setattr(LocalTier, "delete", deletes)


def test_one_that_lost_what_it_needs_is_taken_back_by_recover(
    engine: Engine, source: EmptySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_after_the_point(patch, None, lose_pack)
        with pytest.raises(PermanentError, match="is gone: nothing was committed"):
            pipeline.run(engine, REQUEST)
    assert not source.held
    later = again(engine)
    assert len(later.repository.points_of("vm")) == 1
    assert stages.recover(later)[0].detail.startswith("its point was taken back: the index does not have object")
    assert later.repository.points_of("vm") == []
    assert later.run_directories() == []


def test_one_that_lost_what_it_needs_is_taken_back_by_the_next_backup(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_after_the_point(patch, None, lose_pack)
        with pytest.raises(PermanentError):
            pipeline.run(engine, REQUEST)
    later = again(engine)
    summary = pipeline.run(later, REQUEST)
    assert [point.id for point in later.repository.points_of("vm")] == [summary.id]
    assert verify_all(later.repository, deep=True).ok
    assert later.run_directories() == []


@pytest.mark.parametrize("error", [PermanentError("no rights"), TransientError("no answer")])
def test_one_that_has_all_it_needs_stays(engine: Engine, monkeypatch: pytest.MonkeyPatch, error: VmcellarError) -> None:
    with monkeypatch.context() as patch:
        fail_after_the_point(patch, error, lambda _: None)
        with pytest.raises(VmcellarError, match=error.message):
            pipeline.run(engine, REQUEST)
    later = again(engine)
    (left,) = later.repository.points_of("vm")
    (action,) = stages.recover(later)
    assert action.detail == "its point was written; leftovers cleared"
    assert [point.id for point in later.repository.points_of("vm")] == [left.id]
    assert later.run_directories() == []


def died_as_the_point_was_written(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine of the process after it."""
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    stages.release(engine, handle.run_id)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vmcellar.repository.guard.Guard.after_point", killed)
        with pytest.raises(KeyboardInterrupt):
            stages.commit(engine, handle.run_id)
    later = again(engine)
    assert len(later.repository.points_of("vm")) == 1
    return later


@pytest.mark.parametrize("late", [False, True])
def test_one_whose_writer_died_before_its_last_look_is_looked_at(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    later = died_as_the_point_was_written(engine, monkeypatch)
    (left,) = later.repository.points_of("vm")
    if late:
        lose_pack(later.repository.tier)
    stages.recover(later)
    assert [point.id for point in later.repository.points_of("vm")] == ([] if late else [left.id])
    assert later.run_directories() == []


def test_one_that_is_pinned_stays_and_that_is_said(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    later = died_as_the_point_was_written(engine, monkeypatch)
    (left,) = later.repository.points_of("vm")
    pins.pin(later.repository, left, "mine")
    lose_pack(later.repository.tier)
    stages.recover(later)
    assert later.repository.tier.exists(f"{POINTS}{left.id}")
    assert f"point {left.id} may not restore, and stays because it is pinned" in caplog.text
    assert later.run_directories() == []


def test_one_that_was_looked_at_is_not_doubted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process died as it tidied: whatever is the matter with it later is for `verify` to say."""
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    stages.release(engine, handle.run_id)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vmcellar.backup.commit._tidy", killed)
        with pytest.raises(KeyboardInterrupt):
            stages.commit(engine, handle.run_id)
    later = again(engine)
    (left,) = later.repository.points_of("vm")
    assert later.run_directory(handle.run_id).has(COMMITTED)
    lose_pack(later.repository.tier)
    stages.recover(later)
    assert later.repository.tier.exists(f"{POINTS}{left.id}")
    assert later.run_directories() == []


def test_a_backup_is_done_though_the_state_directory_is_full_at_its_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = RunDirectory.save

    def full(directory: RunDirectory, name: str, value: object) -> None:
        if name == COMMITTED:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(directory, name, value)

    monkeypatch.setattr(RunDirectory, "save", full)
    summary = pipeline.run(engine, REQUEST)
    assert [point.id for point in engine.repository.points_of("vm")] == [summary.id]
    assert engine.run_directories() == []


def test_nothing_is_settled_while_nobody_can_tell(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    later = died_as_the_point_was_written(engine, monkeypatch)
    exists = LocalTier.exists

    def no_answer(tier: LocalTier, key: str) -> bool:
        if key.startswith(META):
            raise TransientError(f"{key}: the storage is away")
        return exists(tier, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalTier, "exists", no_answer)
        with pytest.raises(TransientError, match="the storage is away"):
            stages.recover(later)
    assert len(later.repository.points_of("vm")) == 1
    assert len(later.run_directories()) == 1
    stages.recover(later)
    assert len(later.repository.points_of("vm")) == 1
    assert later.run_directories() == []


def test_the_folder_stays_only_for_a_point_that_may_be_there(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that failed before it wrote one leaves nothing."""
    put = LocalTier.put

    def fails(tier: LocalTier, key: str, data: bytes) -> None:
        if key.startswith(POINTS):
            raise PermanentError(f"{key}: no rights")
        put(tier, key, data)

    monkeypatch.setattr(LocalTier, "put", fails)
    with pytest.raises(PermanentError, match="no rights"):
        pipeline.run(engine, REQUEST)
    assert engine.run_directories() == []
