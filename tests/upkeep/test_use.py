"""Placement by use: packs of points that were restored come near again, and cool again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.upkeep.tiered import TieredWorld
from tests.upkeep.world import DAY, START
from vmcellar.repository import uses
from vmcellar.repository.points import new_point_id
from vmcellar.restore.plan import make_plan
from vmcellar.upkeep.rebalance import rebalance


@pytest.fixture
def world(tmp_path: Path, pool: ThreadPoolExecutor) -> TieredWorld:
    return TieredWorld.make(tmp_path, pool)


def test_a_restore_makes_packs_young_again(world: TieredWorld) -> None:
    host = world.host()
    first, second = world.daily(host, 2)
    world.now = START + 40 * DAY
    assert world.rebalance().ok
    needed = {name: set(make_plan(host, point).keys) for name, point in (("first", first), ("second", second))}
    cold = [key for key in needed["first"] if key.startswith("data/")]
    others = [key for key in needed["second"] - needed["first"] if key.startswith("data/")]
    assert {world.lying()[key] for key in (*cold, *others)} == {("cold",)}
    uses.note(host, first.id)
    uses.note(host, new_point_id(world.now))  # of a point that is gone
    host.tier.put("uses/strange", b"")
    assert world.rebalance().ok
    assert {world.lying()[key] for key in cold} == {("cold",)}, "the rules do not count uses unless told"
    assert list(uses.last(host.tier)) == [first.id]
    with_use = replace(world.rules(), use=True)
    for days, place in ((0, "hot"), (6, "hot"), (8, "warm"), (31, "cold")):
        world.now = START + (40 + days) * DAY
        assert rebalance(host, with_use, at_once=1).ok
        lying = world.lying()
        assert {lying[key] for key in cold} == {(place,)}, days
        assert {lying[key] for key in others} == {("cold",)}
    assert world.check()
