"""Pins: a point's own, and those of work that holds it. No work lets go of what another holds."""

from __future__ import annotations

import pytest

from tests.tiers.faulty import DiedError, FaultyTier
from tests.upkeep.test_doubt import Hooked
from tests.upkeep.world import DAY, World
from vmcellar.config.jobs import KeepByAge
from vmcellar.errors import PermanentError
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import gc, pins
from vmcellar.upkeep.prune import drop, plan, rules_for_all

Two = tuple[Repository, RestorePoint, RestorePoint]


@pytest.fixture
def two(world: World) -> Two:
    """A host, and two points of which retention would drop the first."""
    host = world.host()
    first = world.back_up(host, {0: 1})
    world.now += DAY
    return host, first, world.back_up(host, {0: 2}, first)


def prune(world: World, host: Repository) -> list[str]:
    rules = rules_for_all(KeepByAge(last=1))
    decisions = plan(host.points(), rules, pins=pins.pinned(host), now=world.now)
    return [point.id for point in drop(host, decisions)]


def test_what_one_work_lets_go_of_another_still_holds(world: World, two: Two) -> None:
    host, first, _ = two
    for holder in ("a", "b", "a"):
        pins.hold(host, first, holder, f"for {holder}")
    assert [each.pin and each.pin.note for each in pins.listed(host) if each.holder] != []
    assert len(pins.listed(host)) == 2, "held twice is held once"
    for _ in range(2):
        pins.let_go(host, first.id, "a")
        assert prune(world, host) == []
    pins.pin(host, first, "mine")
    pins.let_go(host, first.id, "b")
    assert prune(world, host) == [], "a person's pin is nobody else's"
    assert pins.unpin(host, first.id) == []
    assert prune(world, host) == [first.id]


def test_the_name_of_who_holds_it_says_nothing(world: World, two: Two) -> None:
    host, first, _ = two
    pins.hold(host, first, "restore of web1", "for web1")
    (path,) = (world.folder / "hot" / "pins").iterdir()
    assert b"web1" not in path.name.encode() + path.read_bytes()


def test_work_that_begins_as_another_ends_keeps_the_point(world: World, two: Two) -> None:
    """At the worst instant: the other one's pin is just about to go."""
    host, first, _ = two
    pins.hold(host, first, "a", "")
    beside = Hooked(world.folder / "hot", "delete", "pins/", lambda: pins.hold(world.host("other"), first, "b", ""))
    pins.let_go(world.host("ending", beside), first.id, "a")
    assert prune(world, host) == []


def test_a_held_point_that_is_lost_stops_gc(world: World, two: Two) -> None:
    host, first, _ = two
    pins.hold(host, first, "a", "")
    world.tier.delete(f"points/{first.id}")
    with pytest.raises(PermanentError, match=f"{first.id} is pinned, but is not there: nothing is deleted"):
        gc.collect(world.host("collector"))


def test_a_point_that_was_dropped_meanwhile_is_not_held(world: World, two: Two) -> None:
    host, first, _ = two
    world.tier.delete(f"points/{first.id}")
    with pytest.raises(PermanentError, match="not there any more"):
        pins.hold(host, first, "a", "")
    assert pins.pinned(host) == set()


def test_a_death_at_any_step_leaves_it_held_or_not_begun(world: World, two: Two) -> None:
    host, first, _ = two
    step = 0
    while True:
        step += 1
        dying = world.host("dying", FaultyTier(world.tier, step))
        try:
            pins.hold(dying, first, "a", "")
            pins.let_go(dying, first.id, "a")
        except DiedError:
            pins.hold(host, first, "a", "")
            pins.let_go(host, first.id, "a")
            assert pins.pinned(host) == set()
        else:
            break
    assert step > 2
