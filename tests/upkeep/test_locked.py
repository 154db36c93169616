"""gc, prune and moves on tiers whose objects are locked: immutable files, and a clock that is moved by hand."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tiers.conftest import lockable
from tests.upkeep.tiered import TieredWorld
from tests.upkeep.world import DAY, World
from vmcellar.policy.retention import Verdict
from vmcellar.repository.points import RestorePoint
from vmcellar.tiers.local import LocalTier
from vmcellar.upkeep import gc, prune
from vmcellar.upkeep.prune import Decision

KEEP = 30 * DAY


@pytest.fixture
def world(tmp_path: Path, pool: ThreadPoolExecutor) -> Iterator[TieredWorld]:
    """Hot locks what is written for 30 days."""
    with lockable(tmp_path):
        made = TieredWorld.make(tmp_path, pool)
        made.tier = LocalTier(tmp_path / "hot", lock_keep=KEEP, clock=lambda: made.now)
        yield made


def drop(world: World, point: RestorePoint, keep: RestorePoint) -> list[RestorePoint]:
    decisions = [Decision(point, False, Verdict(False, "").why), Decision(keep, True, "")]
    return prune.drop(world.host("pruner"), decisions)


def test_gc_leaves_what_is_locked_names_it_and_deletes_it_later(world: TieredWorld) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1, 1: 2, 2: 3})
    world.now += DAY
    second = world.back_up(host, {0: 4, 1: 5, 2: 6}, first)
    assert drop(world, first, second) == []  # a point is locked, too
    world.now += 29.5 * DAY
    assert drop(world, first, second) == [first]
    marked = gc.collect(world.host("collector"), grace=0.0)
    assert marked.marked
    world.tier.lock_until(marked.marked[:1], world.now + DAY)
    dry = gc.collect(world.host("collector"), grace=0.0, dry_run=True)
    report = gc.collect(world.host("collector"), grace=0.0)
    assert [each.key for each in report.locked] == list(marked.marked[:1])
    assert report.deleted == marked.marked[1:]
    assert (dry.locked, dry.deleted) == (report.locked, report.deleted)
    assert report.locked_bytes == world.tier.size(marked.marked[0])
    assert report.locked[0].until == world.now + DAY
    assert world.check() == [second]
    world.now += 1.1 * DAY
    assert gc.collect(world.host("collector"), grace=0.0).deleted == marked.marked[:1]
    assert world.check() == [second]


def test_what_points_need_is_locked_anew_and_nothing_else_is(world: TieredWorld) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1, 1: 2, 2: 3})
    second = world.back_up(host, {0: 4}, first)
    every = world.packs() | world.keys("points/") | world.keys("keys/")
    assert set(world.tier.locked_until(every).values()) == {world.now + KEEP, 0.0}  # the key is older than the lock
    world.now += 10 * DAY
    assert gc.collect(world.host("collector")).extended == 2  # config and the key slot, which had no lock
    world.now += 6 * DAY
    kept = {first.id: world.now + DAY, second.id: world.now + 400 * DAY}
    report = gc.collect(world.host("collector"), kept=lambda point: kept[point.id])
    again = gc.collect(world.host("collector"), kept=lambda point: kept[point.id])
    assert again.extended == 0
    assert report.extended == len(world.packs()) + 1
    until = world.tier.locked_until(every)
    assert {until[key] for key in world.packs()} == {world.now + KEEP}
    assert until[f"points/{second.id}"] == world.now + KEEP
    assert until[f"points/{first.id}"] == world.now + 14 * DAY  # as it was: its job keeps it for a day more
    assert world.tier.locked_until(world.keys("index/")) == dict.fromkeys(world.keys("index/"), 0.0)


def test_a_move_waits_for_a_lock_and_copies_nothing_twice(world: TieredWorld) -> None:
    world.daily(world.host(), 12)
    before = world.lying()
    report = world.rebalance()
    assert report.ok
    assert report.moves == ()
    assert report.held
    assert all("it is locked on hot until" in each.why for each in report.held)
    assert before.items() <= world.lying().items()  # beside what was taken apart into new packs
    world.now += 40 * DAY
    report = world.rebalance()
    assert report.moves
    assert report.held == ()
    assert world.check()


def test_a_missing_copy_is_made_though_the_one_there_is_locked(world: TieredWorld) -> None:
    world.copies = 2
    world.daily(world.host(), 12)
    assert world.rebalance().ok
    lying = world.lying().values()
    assert all("hot" in tiers for tiers in lying)
    assert ("hot", "warm", "cold") in lying  # where it should be, and where it may not go from yet
    world.now += 31 * DAY
    assert world.rebalance().ok
    assert ("warm", "cold") in world.lying().values()
    assert world.check()
