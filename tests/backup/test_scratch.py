"""A VM whose scratch space fills is let go before its guest's writes fail, whatever the backup is at (pitfall 11)."""

from __future__ import annotations

import threading

import pytest

from tests.backup.world import EmptyCapture, EmptySource
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest
from vmcellar.engine import Engine
from vmcellar.errors import PermanentError, TransientError
from vmcellar.progress import CancelToken
from vmcellar.sources.base import Extent

REQUEST = BackupRequest("vm")


def test_scratch_space_is_watched_while_no_chunk_comes(
    engine: Engine, source: EmptySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.full = True

    def waits(_: object, __: object, cancel: CancelToken) -> None:
        source.used = 95
        while not cancel.cancelled:
            threading.Event().wait(0.01)
        cancel.check()

    monkeypatch.setattr("vmcellar.backup.export._SegmentExport._reader", waits)
    with pytest.raises(PermanentError, match=r"scratch space .*95% full"):
        pipeline.run(engine, REQUEST)
    assert not source.held


def test_scratch_space_is_watched_while_a_run_is_planned(
    engine: Engine, source: EmptySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits_for_a_tier(capture: EmptyCapture, target: str) -> list[Extent]:
        source.used = 95
        for _ in range(1000):
            threading.Event().wait(0.01)
            if not capture.alive():  # it looks at no token: only that the VM was let go ends it
                raise TransientError(f"{target}: the connection is lost")
        raise AssertionError("the VM is still held")

    monkeypatch.setattr(EmptyCapture, "allocated", waits_for_a_tier)
    with pytest.raises(PermanentError, match=r"scratch space .*95% full"):
        pipeline.run(engine, REQUEST)
    assert not source.held
    assert engine.run_directories() == []


def test_no_vm_is_held_while_the_tier_is_asked_for_a_key(
    engine: Engine, source: EmptySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: Engine) -> bytes:
        raise TransientError("the tier is away")

    source.full = True
    monkeypatch.setattr("vmcellar.backup.snapshot._have_epoch", away)
    with pytest.raises(TransientError, match="the tier is away"):
        pipeline.run(engine, REQUEST)
    assert source.begun == []
