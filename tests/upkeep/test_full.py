"""A real file system on which nothing is left: prune and gc make room in it, with what was reserved for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tiers.conftest import mounted
from tests.upkeep.world import DAY, World
from vmcellar.config.jobs import KeepByAge
from vmcellar.errors import PermanentError
from vmcellar.tiers import reserve
from vmcellar.tiers.base import FullError
from vmcellar.tiers.local import LocalTier
from vmcellar.upkeep import gc
from vmcellar.upkeep.prune import drop, plan, rules_for_all

ROOM = 64 << 10


@pytest.fixture
def small(tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A repository on a file system of its own, with three points and what a first gc reserved."""
    monkeypatch.setattr(reserve, "BYTES", ROOM)
    with mounted(tmp_path / "hot", "16m") as folder:
        world = World(tmp_path, LocalTier(folder), pool)
        host = world.host()
        point = None
        for number in range(3):
            point = world.back_up(host, {place: 10 * number + place + 1 for place in range(6)}, point)
            world.now += DAY
        assert gc.collect(host).deleted == ()
        assert (folder / reserve.RESERVE).stat().st_size == ROOM
        yield world


def fill(world: World) -> Path:
    ballast = world.tier.path / "ballast"
    with ballast.open("ab") as file:
        while free := world.tier.free_bytes():
            os.posix_fallocate(file.fileno(), file.tell(), free)
            file.seek(0, os.SEEK_END)
    return ballast


def prune(world: World) -> int:
    host = world.host("pruner")
    return len(drop(host, plan(host.points(), rules_for_all(KeepByAge(last=1)), pins=(), now=world.now)))


def test_prune_and_gc_free_a_full_disk(small: World) -> None:
    ballast = fill(small)
    with pytest.raises(FullError, match="No space left"), small.host("writer").working_on("web"):
        pass
    assert (small.tier.path / reserve.RESERVE).exists(), "it is not for those who fill the disk"
    assert prune(small) == 2
    assert not (small.tier.path / reserve.RESERVE).exists()
    assert gc.collect(small.host("collector")).marked
    small.now += 2 * DAY
    assert gc.collect(small.host("collector")).deleted
    assert small.tier.free_bytes()
    ballast.unlink()
    small.back_up(small.host("writer"), {0: 99}, small.host("writer").points()[0])
    assert prune(small) == 1
    assert (small.tier.path / reserve.RESERVE).stat().st_size == ROOM, "for the next time"
    small.check()


def test_without_a_reserve_they_say_so_and_touch_nothing(small: World) -> None:
    (small.tier.path / reserve.RESERVE).unlink()
    fill(small)
    with pytest.raises(PermanentError, match="No space left"):
        prune(small)
    assert len(small.check()) == 3


def test_a_small_place_is_not_filled_by_it(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (small.tier.path / reserve.RESERVE).unlink()
    monkeypatch.setattr(reserve, "SHARE", 1000)
    gc.collect(small.host("collector"))
    assert not (small.tier.path / reserve.RESERVE).exists()
    assert list(small.tier.staging_dir().iterdir()) == []
