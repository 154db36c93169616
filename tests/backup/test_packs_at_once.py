"""Packs of a segment side by side: how many, what an error stops, and which error is told."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmcellar.backup import place, verify
from vmcellar.backup.model import CompressResult, PackHandle
from vmcellar.backup.packs_at_once import each_pack
from vmcellar.backup.rundir import stage_file
from vmcellar.engine import Engine
from vmcellar.errors import CancelledError, IntegrityError, TransientError
from vmcellar.progress import CancelToken, no_progress

SECONDS = 30.0


def packs(count: int) -> tuple[PackHandle, ...]:
    return tuple(
        PackHandle(f"{number:032x}", f"data/{number:032x}", f"/nowhere/{number}", 4096) for number in range(count)
    )


def test_results_come_in_the_order_of_the_packs_and_so_many_are_at_work() -> None:
    together = threading.Barrier(3, timeout=SECONDS)
    at_work, most, lock = 0, 0, threading.Lock()

    def work(pack: PackHandle, _: CancelToken) -> str:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        together.wait()
        with lock:
            at_work -= 1
        return pack.id

    assert each_pack(packs(6), 3, work, CancelToken()) == [pack.id for pack in packs(6)]
    assert most == 3
    assert each_pack((), 3, work, CancelToken()) == []


def test_an_error_stops_the_others_and_is_the_one_that_is_told() -> None:
    begun = []
    started = threading.Event()

    def work(pack: PackHandle, stop: CancelToken) -> None:
        begun.append(pack)
        if pack == packs(6)[0]:
            started.set()
            while not stop.cancelled:
                threading.Event().wait(0.001)
            stop.check()
        started.wait(SECONDS)
        raise IntegrityError("pack 1 is damaged")

    with pytest.raises(IntegrityError, match="pack 1 is damaged"):
        each_pack(packs(6), 2, work, CancelToken())
    assert len(begun) == 2, "those that had not begun never do"


def test_a_stop_from_outside_begins_nothing() -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        each_pack(packs(2), 2, lambda *_: pytest.fail("it was begun"), cancel)


@pytest.fixture
def engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Its runs are folders alone, whose VMs nobody holds."""
    monkeypatch.setattr(engine, "run", lambda run_id: SimpleNamespace(directory=engine.run_directory(run_id)))
    return engine


def compressed(engine: Engine, count: int) -> str:
    """A run whose only segment has so many sealed packs."""
    directory = engine.run_directory("run")
    directory.create()
    result = CompressResult("vda", 0, packs(count), 0, 0, 0.0)
    directory.save(stage_file("vda", 0, "compress"), result)
    return "run"


def test_packs_are_placed_side_by_side(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's answers are waited for by several at once."""
    together = threading.Barrier(place.PLACED_AT_ONCE, timeout=SECONDS)
    placed = []

    def adopt(path: Path, key: str) -> None:
        together.wait()
        placed.append((str(path), key))

    monkeypatch.setattr(engine.repository.tier, "adopt", adopt)
    run_id, count = compressed(engine, 2 * place.PLACED_AT_ONCE), 2 * place.PLACED_AT_ONCE
    result = place.place(engine, run_id, "vda", 0, no_progress, CancelToken())
    assert sorted(placed) == sorted((pack.path, pack.key) for pack in packs(count))
    assert result.packs == tuple(pack.id for pack in packs(count))


def test_nothing_is_recorded_when_one_pack_cannot_be_placed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def adopt(_: Path, key: str) -> None:
        if key == packs(3)[2].key:
            raise TransientError("the tier is away")

    monkeypatch.setattr(engine.repository.tier, "adopt", adopt)
    run_id = compressed(engine, 3)
    with pytest.raises(TransientError, match="the tier is away"):
        place.place(engine, run_id, "vda", 0, no_progress, CancelToken())
    assert not engine.run_directory(run_id).has(stage_file("vda", 0, "place"))
    assert engine.place_slots.acquire(blocking=False), "no place is held"


def test_two_packs_are_checked_side_by_side(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=SECONDS)

    def check(*_: object) -> int:
        together.wait()
        return 5

    monkeypatch.setattr(verify, "verify_pack", check)
    result = verify.verify(engine, compressed(engine, 4), "vda", 0, no_progress, CancelToken())
    assert (result.chunks, result.packs) == (20, tuple(pack.id for pack in packs(4)))
