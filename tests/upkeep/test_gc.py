"""gc: what no point needs goes, after its grace time; all else stays, whatever happens beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tiers.faulty import DiedError
from tests.upkeep.world import DAY, HOUR, World
from vmcellar.errors import CancelledError, IntegrityError, PermanentError, TransientError
from vmcellar.progress import CancelToken
from vmcellar.repository import evidence, leases
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import gc


def drop(world: World, point_id: str) -> None:
    world.tier.delete(f"points/{point_id}")
    del world.model[point_id]


def two_points(world: World, host: Repository) -> set[str]:
    """A point that stays and one that was dropped; the packs that only the dropped one needs."""
    world.back_up(host, {0: 1, 1: 2})
    kept = world.packs()
    gone = world.back_up(host, {0: 3, 1: 2}, vm="other")
    drop(world, gone.id)
    return world.packs() - kept


def test_two_runs_and_a_grace_time(world: World) -> None:
    host = world.host()
    garbage = two_points(world, host)
    assert len(garbage) == 2
    first = gc.collect(host)
    assert (set(first.marked), first.deleted) == (garbage, ())
    world.now += 23 * HOUR
    waiting = gc.collect(host)
    assert (waiting.marked, waiting.deleted) == ((), ())
    assert "kept for 86400 s" in waiting.waiting[0]
    world.now += 2 * HOUR
    done = gc.collect(host)
    assert set(done.deleted) == garbage
    assert done.deleted_bytes > 0
    assert not world.packs() & garbage
    assert world.keys("gc/") == world.keys("leases/") == set()
    assert len(world.check()) == 1
    again = gc.collect(host)
    assert (again.marked, again.deleted, again.packs) == ((), (), again.needed)


def test_what_is_needed_again_is_not_deleted(world: World) -> None:
    """A point that came by another way (restored from a mirror) needs what is marked."""
    host = world.host()
    world.back_up(host, {5: 9}, vm="another")  # gc refuses where no point is left
    point = world.back_up(host, {0: 1})
    key = f"points/{point.id}"
    data = world.tier.get(key)
    world.tier.delete(key)
    gc.collect(host)
    world.tier.put(key, data)
    world.now += 2 * DAY
    report = gc.collect(host)
    assert report.deleted == ()
    assert world.keys("gc/") == set()
    world.check()


def test_a_dry_run_changes_nothing_and_tells_what_would_go(world: World) -> None:
    host = world.host()
    garbage = two_points(world, host)
    every = {str(path) for path in world.tier.path.rglob("*")}
    report = gc.collect(host, dry_run=True)
    assert set(report.marked) == garbage
    assert {str(path) for path in world.tier.path.rglob("*")} == every
    gc.collect(host)
    world.now += 2 * DAY
    every = {str(path) for path in world.tier.path.rglob("*")}
    assert set(gc.collect(host, dry_run=True).deleted) == garbage
    assert {str(path) for path in world.tier.path.rglob("*")} == every


def ready_to_delete(world: World) -> tuple[Repository, set[str]]:
    host = world.host()
    garbage = two_points(world, host)
    gc.collect(host)
    world.now += 2 * DAY
    return host, garbage


@pytest.mark.parametrize("kind", ["points", "index", "leases", "meta"])
def test_kopia_1087_nothing_is_deleted_when_anything_is_unreadable(world: World, kind: str) -> None:
    """kopia #1087: maintenance that could not read part of the metadata took what it did not see for garbage."""
    _, garbage = ready_to_delete(world)
    with leases.holding(world.tier, world.host().keyring, "restore", lambda: world.now):
        path = [p for p in sorted((world.tier.path / kind).rglob("*")) if p.is_file() and _needed(p, garbage)][-1]
        data = bytearray(path.read_bytes())
        data[len(data) // 2 if kind != "meta" else 120] ^= 1  # in the node
        path.chmod(0o600)
        path.write_bytes(data)
        before = world.packs()
        with pytest.raises(IntegrityError):
            gc.collect(world.host("fresh"))
        assert world.packs() == before


def _needed(path: Path, garbage: set[str]) -> bool:
    return not any(key.endswith(path.name) for key in garbage)


@pytest.mark.parametrize("step", range(1, 9))
def test_benji_119_nothing_is_deleted_when_a_listing_fails(world: World, step: int) -> None:
    """benji #119: cleanup that raced with, or misread, what was there deleted blocks that were in use."""
    host, _ = ready_to_delete(world)
    host.close()
    before = world.packs()
    faulty = world.faulty(step, operations=frozenset({"list"}), error=TransientError("the device does not answer"))
    try:
        report = gc.collect(world.host(tier=faulty))
    except TransientError:
        assert faulty.fired
        assert world.packs() == before
    else:
        assert not faulty.fired
        assert report.deleted
    world.check()


def test_a_missing_pack_stops_gc(world: World) -> None:
    host, garbage = ready_to_delete(world)
    lost = next(key for key in sorted(world.packs() - garbage) if key.startswith("data/"))
    world.tier.delete(lost)
    before = world.packs()
    with pytest.raises(IntegrityError, match=r"missing: nothing is deleted"):
        gc.collect(host)
    assert world.packs() == before


def test_a_directory_that_vanishes_stops_gc(world: World) -> None:
    host, _ = ready_to_delete(world)
    before = world.packs()
    world.tier.path.rename(world.folder / "elsewhere")
    world.tier.path.mkdir()
    with pytest.raises(PermanentError):
        gc.collect(host)
    world.tier.path.rmdir()
    (world.folder / "elsewhere").rename(world.tier.path)
    assert world.packs() == before


def test_a_damaged_cache_of_this_host_misleads_nobody(world: World) -> None:
    host, garbage = ready_to_delete(world)
    with host.index._writing() as database:
        database.execute("UPDATE entries SET pack = (SELECT MAX(number) FROM packs)")
    assert set(gc.collect(host).deleted) == garbage
    world.check()


def test_something_foreign_among_the_packs_stops_gc(world: World) -> None:
    host, _ = ready_to_delete(world)
    (world.tier.path / "data" / "notes.txt").write_text("mine")
    before = world.packs()
    with pytest.raises(IntegrityError, match="is no pack"):
        gc.collect(host)
    assert world.packs() == before


def count_of_steps(world: World) -> int:
    faulty = world.faulty()
    gc.collect(world.host("counter", faulty))
    return faulty.count


@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_durable_step_is_gone_on_with(world: World, tmp_path: Path, after: bool) -> None:
    """Every put and delete of a run that deletes, rewrites index parts and marks; then a second run finishes."""
    steps, step = 1, 0
    while step < steps:
        step += 1
        folder = tmp_path / f"{step}"
        folder.mkdir()
        own = World.make(folder, world.pool)
        host, garbage = ready_to_delete(own)
        newer = own.back_up(host, {0: 7}, vm="third")
        drop(own, newer.id)  # so that the run marks, too
        host.close()
        faulty = own.faulty(step, after=after)
        try:
            gc.collect(own.host("dying", faulty))
        except DiedError:
            assert faulty.fired
            steps = step + 1
        own.check()
        own.now += 2 * DAY
        last = own.host("next")
        gc.collect(last)
        own.now += 2 * DAY
        gc.collect(last)
        assert not own.packs() & garbage
        report = gc.collect(last, dry_run=True)
        assert (report.packs, report.marked) == (report.needed, ())
        assert own.keys("gc/") == own.keys("leases/") == set()
        own.check()
    assert steps > 8


def test_gc_can_be_stopped(world: World) -> None:
    host, _ = ready_to_delete(world)
    before = world.packs()
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        gc.collect(host, cancel=cancel)
    assert world.packs() == before
    assert world.keys("leases/") == set()


def test_one_gc_at_a_time(world: World) -> None:
    host, _ = ready_to_delete(world)
    with (
        leases.holding(world.tier, host.keyring, leases.GC, lambda: world.now),
        pytest.raises(PermanentError, match="gc runs already"),
    ):
        gc.collect(host)


def test_a_mark_that_cannot_be_read_is_made_anew(world: World) -> None:
    _, garbage = ready_to_delete(world)
    path = world.tier.path / next(iter(world.keys("gc/")))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    report = gc.collect(world.host("fresh"))
    assert report.deleted == ()
    assert set(report.marked) == garbage
    assert re.search(r"cannot be read", report.notes[0])


def test_a_clock_that_ran_ahead_when_it_marked_only_delays(world: World) -> None:
    host = world.host()
    two_points(world, host)
    ahead = world.host("ahead", clock=lambda: world.now + 365 * DAY)
    gc.collect(ahead)
    world.now += 2 * DAY
    report = gc.collect(host)
    assert report.deleted == ()
    assert "clock" in report.waiting[0]


def test_evidence_goes_with_its_point(world: World) -> None:
    host = world.host()
    kept = world.back_up(host, {0: 1})
    gone = world.back_up(host, {0: 2}, vm="other")
    for point in (kept, gone):
        checks = (evidence.Check("boot", "yes", "yes", ok=True),)
        evidence.write(host, evidence.Evidence(point.id, point.vm, "drill", "passed", world.now, "h", checks))
    drop(world, gone.id)
    before = world.keys("evidence/")
    assert "evidence about points that are gone: 1 records" in gc.collect(host, dry_run=True).notes
    assert world.keys("evidence/") == before
    gc.collect(host)
    assert {each.point for each in evidence.names(host.tier)} == {kept.id}
