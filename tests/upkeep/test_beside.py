"""Writers beside gc and prune: whoever was paused for however long, no committed point is ever broken."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.tiers.faulty import DiedError, FaultyTier
from tests.upkeep.world import DAY, HOUR, World
from vmcellar.errors import IntegrityError, PermanentError, TransientError, VmcellarError
from vmcellar.repository import guard, leases
from vmcellar.repository.guard import Guard
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import gc
from vmcellar.upkeep.index_parts import FEWEST


def garbage_of_content(world: World, host: Repository, number: int) -> None:
    """Content that lies in packs which no point needs."""
    world.back_up(host, {5: 9})
    gone = world.back_up(host, {0: number}, vm="other")
    world.tier.delete(f"points/{gone.id}")
    del world.model[gone.id]


def through_gc(world: World) -> None:
    """A whole life of garbage: marked, waited for, deleted."""
    collector = world.host("collector")
    for _ in range(3):
        gc.collect(collector)
        world.now += 2 * DAY
    collector.close()


def test_pbs_5982_a_backup_that_deduplicated_against_garbage_loses_nothing(world: World) -> None:
    """PBS 5982: collection removed chunks that a running backup had found and not stored again."""
    host = world.host()
    garbage_of_content(world, host, 3)
    collector = world.host("collector")

    def beside() -> None:
        gc.collect(collector)
        world.now += 2 * DAY
        host._held["web"].renew()
        assert gc.collect(collector).deleted == ()

    world.back_up(host, {0: 3}, before_commit=beside)
    world.now += 2 * DAY
    assert not [key for key in gc.collect(collector).deleted if key.startswith("data/")]  # its node was stored again
    world.check()


def test_marked_packs_are_unknown_to_deduplication(world: World) -> None:
    host = world.host()
    garbage_of_content(world, host, 3)
    gc.collect(world.host("collector"))
    before = len(world.keys("data/"))
    world.back_up(host, {0: 3}, vm="late")
    assert len(world.keys("data/")) == before + 1
    through_gc(world)
    world.check()


def test_a_writer_paused_beyond_its_lease_takes_its_point_back(world: World) -> None:
    host = world.host()
    garbage_of_content(world, host, 3)
    points = len(world.check())

    with pytest.raises((TransientError, IntegrityError)):
        world.back_up(host, {0: 3}, before_commit=lambda: through_gc(world))
    assert len(world.check()) == points


class PausedTier(FaultyTier):
    """Runs `pause` before or after the point is written; `point` is the last one that it wrote."""

    pause: Callable[[], object] = staticmethod(lambda: None)
    late: bool = False
    point: str = ""

    def put(self, key: str, data: bytes) -> None:
        if key.startswith("points/"):
            self.point = key.removeprefix("points/")
        if key.startswith("points/") and not self.late:
            self.pause()
        super().put(key, data)
        if key.startswith("points/") and self.late:
            self.pause()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("lease", [False, True])
def test_a_writer_paused_at_the_point_itself(world: World, lease: bool, late: bool) -> None:
    """Between its last look and the point, or right after the point: gc runs through all its phases meanwhile."""
    host = world.host()
    garbage_of_content(world, host, 3)
    tier = PausedTier(world.tier)
    tier.late = late
    tier.pause = lambda: through_gc(world)
    slow = world.host("slow", tier)
    before = len(world.check())
    try:
        world.back_up(slow, {0: 3}, lease=lease)
    except VmcellarError:
        assert len(world.check()) == before
    else:
        assert late  # gc saw the point
        assert len(world.check()) == before + 1


MEANWHILE: dict[str, tuple[Callable[[World], object], str]] = {
    "no gc": (lambda _: None, ""),
    "marked": (lambda world: gc.collect(world.host("collector")), "gc is about to delete"),
    "deleted": (through_gc, "is gone|does not have object"),
}


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_a_point_whose_writer_was_killed_before_its_last_look(
    world: World, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Whatever a gc did between the writer's last look and its point: it stays if nothing that it needs can go."""
    gc_beside, why = MEANWHILE[meanwhile]
    host = world.host()
    garbage_of_content(world, host, 3)
    before = {point.id for point in world.check()}
    tier = PausedTier(world.tier)
    tier.pause = lambda: gc_beside(world)
    slow = world.host("slow", tier)

    def killed(_: Guard) -> None:
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(Guard, "after_point", killed)
        with pytest.raises(DiedError):
            world.back_up(slow, {0: 3})
    (point,) = [each for each in world.host("looker").points() if each.id not in before]
    doubt = guard.doubt(world.host("looker"), point)
    assert re.search(why, doubt) if why else doubt == "", doubt
    if doubt:
        guard.withdraw(world.host("looker"), point.id)
    through_gc(world)
    assert {each.id for each in world.check()} == (before if why else {*before, point.id})


def test_a_mark_older_than_the_lease_stops_a_commit_that_relies_on_it(world: World) -> None:
    """A run that goes on in a new process took what it knows from an index of before the mark."""
    host = world.host()
    garbage_of_content(world, host, 3)
    gc.collect(world.host("collector"))
    host.index._marked = frozenset()  # as the earlier process saw it
    with host.working_on("web") as lease:
        assert lease.known
        host.index._marked = frozenset()
        with pytest.raises(PermanentError, match="gc is about to delete"):
            _commit_against(world, host)
    through_gc(world)
    world.check()


def _commit_against(world: World, host: Repository) -> None:
    real = host.index.refresh

    def blind(**options: bool) -> None:
        real(**options)
        host.index._marked = frozenset()

    host.index.refresh = blind  # type: ignore[method-assign]
    world.back_up(host, {0: 3}, lease=False)


def test_an_incremental_on_a_parent_whose_packs_a_gc_marked_meanwhile(world: World) -> None:
    """Marked while they were not committed yet: the parent protects them, so the next backup need not store again."""
    host = world.host()
    world.back_up(host, {5: 9}, vm="another")  # gc refuses where no point is left
    first = world.back_up(host, {0: 1, 1: 2}, before_commit=lambda: gc.collect(world.host("collector"), grace=0))
    data = world.tier.get(f"points/{first.id}")
    world.tier.delete(f"points/{first.id}")
    gc.collect(world.host("collector"))
    world.tier.put(f"points/{first.id}", data)
    world.now += HOUR
    packs = len(world.keys("data/"))
    world.back_up(host, {2: 3}, first)
    assert len(world.keys("data/")) == packs + 1
    through_gc(world)
    assert len(world.check()) == 3


def test_a_parent_that_was_dropped_meanwhile_stops_the_commit(world: World) -> None:
    host = world.host()
    world.back_up(host, {5: 9}, vm="another")  # gc refuses where no point is left
    first = world.back_up(host, {0: 1})
    world.now += HOUR
    with pytest.raises(PermanentError, match="was dropped meanwhile"):
        world.back_up(host, {1: 2}, first, before_commit=lambda: world.tier.delete(f"points/{first.id}"))
    del world.model[first.id]
    through_gc(world)
    assert [point.vm for point in world.check()] == ["another"]


def test_packs_that_a_running_backup_has_placed_are_not_marked(world: World) -> None:
    host = world.host()
    world.back_up(host, {0: 1}, before_commit=lambda: gc.collect(world.host("collector")))
    assert world.keys("gc/") == set()


def test_a_gc_that_was_paused_deletes_nothing_once_its_lease_is_gone(world: World) -> None:
    host = world.host()
    garbage_of_content(world, host, 3)
    gc.collect(host)
    world.now += 2 * DAY
    before = world.packs()
    other = world.host("other")

    class Pausing(FaultyTier):
        def delete(self, key: str) -> None:
            if key.startswith("index/"):
                world.now += HOUR
                leases.remove_stale(world.tier, other.keyring, world.now)
            super().delete(key)

    with pytest.raises(TransientError, match="taken away"):
        gc.collect(world.host("paused", Pausing(world.tier)))
    assert world.packs() == before
    world.check()


def test_a_gc_that_was_paused_while_it_wrote_an_index_part_takes_that_back(world: World) -> None:
    """The other gc deleted the packs meanwhile: an index that names them again would refuse backups at their commit."""
    host = world.host()
    garbage_of_content(world, host, 3)
    gc.collect(host, grace=DAY)
    for number in range(FEWEST):
        world.back_up(host, {1: number + 20}, vm=f"vm{number}")
    world.now += DAY - HOUR / 2  # the mark is not due yet, so what the part says of its packs stays
    other = world.host("other")

    class Pausing(FaultyTier):
        def put(self, key: str, data: bytes) -> None:
            if key.startswith("index/"):
                world.now += HOUR
                leases.remove_stale(world.tier, other.keyring, world.now)
                assert gc.collect(other, grace=DAY).deleted != ()
            super().put(key, data)

    with pytest.raises(TransientError, match="taken away"):
        gc.collect(world.host("paused", Pausing(world.tier)), grace=DAY)
    named = {pack.key for pack in world.host("third").index.packs()}
    assert named <= world.keys("data/") | world.keys("meta/")
    world.check()


def test_clocks_five_minutes_apart_do_no_harm(world: World) -> None:
    """The writer's clock is behind, the collector's ahead: its lease still counts until ten minutes after its end."""
    writer = world.host("writer", clock=lambda: world.now - leases.SKEW)
    collector = world.host("collector", clock=lambda: world.now + leases.SKEW)
    garbage_of_content(world, collector, 3)

    def beside() -> None:
        gc.collect(collector, grace=0)
        world.now += leases.SECONDS / 3  # the longest between two renewals
        assert gc.collect(collector, grace=0).deleted == ()

    world.back_up(writer, {0: 3}, before_commit=beside)
    world.check()


def test_longhorn_1385_a_damaged_copy_is_not_what_stays(world: World) -> None:
    """longhorn #1385: a block that went bad was referred to by every later backup. Here both copies stay."""
    host = world.host()
    first = world.back_up(host, {0: 3})
    located = host.index.locate([host.keyring.chunk_id(world.model[first.id][: 64 << 10])])
    host.index.note_damaged(located.values())
    world.now += HOUR
    world.back_up(host, {0: 3}, vm="again")
    assert len(world.keys("data/")) == 2
    through_gc(world)
    bad = next(iter(located.values()))
    path = world.tier.path / bad.pack.key
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[bad.offset + 5] ^= 1
    path.write_bytes(data)
    assert len(world.check()) == 2


# leases


def test_a_lease_says_who_and_since_when_and_ends(world: World) -> None:
    host = world.host()
    with host.working_on("web"):
        (found,) = leases.found(world.tier, host.keyring)
        assert (found.newest.what, found.newest.since, found.newest.known) == ("backup web", world.now, ())
        assert found.newest.host
        assert found.newest.boot
    assert world.keys("leases/") == set()


def test_a_lease_is_renewed_by_new_objects(world: World) -> None:
    lease = leases.HeldLease(world.tier, world.host().keyring, "x", lambda: world.now)
    before = world.keys("leases/")
    world.now += 600
    lease.renew()
    assert world.keys("leases/") - before
    assert len(world.keys("leases/")) == 2
    (found,) = leases.found(world.tier, world.host().keyring)
    assert found.newest.expires == world.now + leases.SECONDS
    lease.release()
    assert world.keys("leases/") == set()


def test_a_lease_that_was_taken_away_stays_away(world: World) -> None:
    keyring = world.host().keyring
    lease = leases.HeldLease(world.tier, keyring, "x", lambda: world.now)
    world.now += leases.SECONDS + leases.SKEW
    assert len(leases.remove_stale(world.tier, keyring, world.now)) == 1  # not yet
    world.now += 1
    assert leases.remove_stale(world.tier, keyring, world.now) == []
    for again in (lease.check, lease.renew):
        with pytest.raises(TransientError, match="taken away"):
            again()
    lease.release()
    assert world.keys("leases/") == set()


def test_the_lease_of_a_process_that_ended_is_stale_at_once(world: World) -> None:
    lease = leases.HeldLease(world.tier, world.host().keyring, "x", lambda: world.now)
    (found,) = leases.found(world.tier, world.host().keyring)
    assert not found.stale(world.now)
    dead = replace(found, newest=replace(found.newest, pid=(1 << 22) + 5))
    assert dead.stale(world.now)
    assert not replace(dead, newest=replace(dead.newest, boot="another")).stale(world.now)
    lease.release()


def test_a_tier_that_is_full_takes_no_lease(world: World) -> None:
    faulty = world.faulty(2, error=PermanentError("no space"))
    with pytest.raises(PermanentError, match="no space"):
        leases.HeldLease(faulty, world.host().keyring, "x")
    assert world.keys("leases/") == set()
