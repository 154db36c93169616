"""consolidate: restores read in sequence again, small packs go together, and no point is changed."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.repository.writing import back_up, read_disk
from tests.tiers.faulty import DiedError
from tests.upkeep.world import DAY, HOUR, World
from vmcellar.errors import CancelledError, PermanentError
from vmcellar.progress import CancelToken
from vmcellar.repository import leases
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.restore import plan
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.tiers.local import LocalTier
from vmcellar.upkeep import gc
from vmcellar.upkeep.consolidate import WINDOW, consolidate

BLOCK = 64 << 10
BLOCKS = 160


def fragmented(world: World, host: Repository, increments: int = 24) -> tuple[RestorePoint, bytes]:
    """A disk of 10 MiB of which each increment rewrote eight blocks anywhere; the last point and what it must read."""
    chance = random.Random(5)
    image = bytearray(chance.randbytes(BLOCKS * BLOCK))
    whole = [(start, bytes(image[start : start + BLOCK])) for start in range(0, len(image), BLOCK)]
    point = back_up(host, world.pool, whole, len(image))
    for _ in range(increments):
        changes = []
        for block in sorted(chance.sample(range(BLOCKS), 8)):
            data = chance.randbytes(BLOCK)
            image[block * BLOCK : (block + 1) * BLOCK] = data
            changes.append((block * BLOCK, data))
        point = back_up(host, world.pool, changes, len(image), point)
    return point, bytes(image)


def same_bytes(world: World, points: dict[str, bytes]) -> None:
    fresh = world.host(f"fresh-{random.random()}")
    assert {point.id: read_disk(fresh, point) for point in fresh.points()} == points
    fresh.close()


def all_bytes(host: Repository) -> dict[str, bytes]:
    return {point.id: read_disk(host, point) for point in host.points()}


def test_a_fragmented_disk_is_read_in_sequence_again(world: World) -> None:
    host = world.host()
    point, image = fragmented(world, host)
    before = all_bytes(host)
    assert before[point.id] == image
    keys = world.keys("points/")
    told = consolidate(host, dry_run=True)
    report = consolidate(host)
    assert (told.old, told.reads_after) == (report.old, report.reads_after)
    assert report.reads_after * 5 < report.reads_before
    assert world.keys("points/") == keys
    same_bytes(world, before)
    again = consolidate(host)
    assert (again.old, again.reads_before) == ((), report.reads_after)
    world.now += 2 * DAY
    done = gc.collect(host)
    assert set(report.old) <= set(done.deleted)
    same_bytes(world, before)
    assert gc.collect(host).needed == len(world.packs())


def test_small_packs_are_put_together(world: World) -> None:
    host = world.host()
    parent = None
    for number in range(1, 10):
        world.now += HOUR
        parent = world.back_up(host, {number % 6: number}, parent)
    assert len(world.keys("meta/")) == 9
    consolidate(host)
    world.now += 2 * DAY
    gc.collect(host)
    assert (len(world.keys("meta/")), len(world.keys("data/"))) == (1, 1)
    assert len(world.check()) == 9
    assert consolidate(host).old == ()


def test_a_healthy_repository_is_left_alone(world: World) -> None:
    host = world.host()
    world.back_up(host, {0: 1, 1: 2})
    before = world.packs()
    report = consolidate(host)
    assert (report.old, report.new_packs, report.reads_before) == ((), 0, report.reads_after)
    assert world.packs() == before


@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_durable_step_is_gone_on_with(world: World, tmp_path: Path, after: bool) -> None:
    parent, host = None, world.host()
    for number in range(1, 9):
        parent = world.back_up(host, {number % 6: number}, parent)
    steps, step = 1, 0
    while step < steps:
        step += 1
        folder = tmp_path / f"{step}"
        shutil.copytree(world.tier.path, folder / "hot")
        own = replace(world, folder=folder, tier=LocalTier(folder / "hot"))
        faulty = own.faulty(step, after=after)
        try:
            consolidate(own.host("dying", faulty))
        except DiedError:
            steps = step + 1
        own.check()
        last = own.host("next")
        own.now += DAY
        for work in (consolidate, gc.collect, gc.collect, consolidate, gc.collect):
            work(last)
            own.now += 2 * DAY
        own.check()
        assert len(own.packs()) <= 4
    assert steps > 8


def test_it_can_be_stopped_and_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcellar.upkeep.rewrite.rounds.__defaults__", (2 << 20,))
    host = world.host()
    fragmented(world, host)
    before = all_bytes(host)
    cancel = CancelToken()

    def stop(stage: str, _: int) -> None:
        if stage == "rewrite":
            cancel.cancel()

    with pytest.raises(CancelledError):
        consolidate(host, progress=stop, cancel=cancel)
    assert len(world.keys("gc/")) == 1  # one round is done
    assert list(world.tier.staging_dir().iterdir()) == []
    assert world.keys("leases/") == set()
    same_bytes(world, before)
    assert consolidate(host).old
    same_bytes(world, before)


def test_its_windows_are_those_of_a_restore() -> None:
    assert plan.WINDOW == WINDOW


def test_not_beside_a_gc(world: World) -> None:
    host = world.host()
    world.back_up(host, {0: 1})
    for one, other in ((leases.GC, consolidate), (leases.CONSOLIDATE, gc.collect)):
        with (
            leases.holding(world.tier, host.keyring, one, lambda: world.now),
            pytest.raises(PermanentError, match=f"{one} runs already"),
        ):
            other(host)


def test_a_restore_holds_what_a_prune_drops_meanwhile(world: World, tmp_path: Path) -> None:
    host, collector = world.host(), world.host("collector")
    point = world.back_up(host, {0: 1, 1: 2})
    world.back_up(host, {2: 3}, vm="other")
    seen: list[str] = []

    def beside(stage: str, _: int) -> None:
        if stage != "restore" or seen:
            return
        seen.extend(lease.newest.what for lease in leases.found(world.tier, host.keyring))
        world.tier.delete(f"points/{point.id}")
        assert gc.collect(collector, grace=0).marked
        world.now += 10
        report = gc.collect(collector, grace=0)
        assert report.deleted == ()
        assert "restore web" in report.waiting[0]

    restored = restore_point(host, point, RestoreTarget(tmp_path / "out", format="raw"), beside)
    assert seen == ["restore web"]
    assert restored.disks[0].path.read_bytes() == world.model[point.id]
    assert world.keys("leases/") == set()


def test_a_restore_from_a_place_that_takes_no_lease(world: World, tmp_path: Path) -> None:
    point = world.back_up(world.host(), {0: 1})
    full = world.faulty(1, operations=frozenset({"put"}), error=PermanentError("read-only"))
    restored = restore_point(world.host("reader", full), point, RestoreTarget(tmp_path / "out", format="raw"))
    assert restored.disks[0].path.read_bytes() == world.model[point.id]
