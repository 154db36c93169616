"""Index parts: their number stays small however many backups there are and whatever dies meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.tiers.faulty import DiedError
from tests.upkeep.world import DAY, HOUR, World
from vmcellar.errors import IntegrityError
from vmcellar.repository import index_parts as parts
from vmcellar.repository.index_parts import PackEntry
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import gc, index_parts


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_parts, "FEWEST", 4)


def history(world: World, host: Repository, contents: range) -> None:
    """Backups of one VM that each store something new, and so leave an index part."""
    parent = host.points_of("web")[-1:]
    for number in contents:
        world.now += HOUR
        parent = [world.back_up(host, {number % 6: number}, *parent)]


def test_small_parts_are_put_together(world: World) -> None:
    host = world.host()
    history(world, host, range(1, 4))
    assert gc.collect(host).index_parts == 0
    history(world, host, range(4, 6))
    assert gc.collect(host, dry_run=True).index_parts == 5
    assert gc.collect(host).index_parts == 5
    assert len(world.keys("index/")) == 1
    assert gc.collect(host).index_parts == 0
    assert len(world.check()) == 5


def test_their_number_does_not_grow_with_that_of_the_backups(world: World) -> None:
    host = world.host()
    written = 0
    for number in range(1, 31):
        history(world, host, range(number, number + 1))
        written += gc.collect(host).index_parts
        assert len(world.keys("index/")) <= 7
    assert written <= 30 * 4, "each is written anew a few times only"
    assert len(world.check()) == 30
    world.host("b").close()


def test_a_host_that_knew_the_old_parts_goes_on_with_the_new_ones(world: World) -> None:
    host, other = world.host(), world.host("b")
    history(world, host, range(1, 6))
    other.index.refresh()
    before = {pack.id for pack in other.index.packs()}
    gc.collect(host)
    other.index.refresh()
    assert {pack.id for pack in other.index.packs()} == before
    assert other.index.entry_parts() == {bytes.fromhex(key.removeprefix("index/")) for key in world.keys("index/")}
    world.check("b")
    other.close()


@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_step_leaves_no_part_too_many(world: World, tmp_path: Path, after: bool) -> None:
    steps, step = 1, 0
    while step < steps:
        step += 1
        (tmp_path / f"{step}").mkdir()
        own = World.make(tmp_path / f"{step}", world.pool)
        host = own.host()
        history(own, host, range(1, 6))
        host.close()
        try:
            gc.collect(own.host("dying", own.faulty(step, after=after)))
        except DiedError:
            steps = step + 1
        own.check()
        own.now += DAY
        last = own.host("next")
        gc.collect(last)
        assert len(own.keys("index/")) == 1
        assert last.index.parts_alike() == set()
        own.check()
        last.close()
    assert steps > 8


def test_no_more_is_put_into_one_part_than_it_may_hold(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = world.host()
    history(world, host, range(1, 9))
    rows = [len(part.rows) for part in read_all(world, host)]
    most = 4 * max(rows)
    monkeypatch.setattr(index_parts, "MERGED_ROWS", most)
    assert gc.collect(host).index_parts == 8
    left = [len(part.rows) for part in read_all(world, host)]
    assert sum(left) == sum(rows)
    assert max(left) <= most
    assert 1 < len(left) < 8
    assert gc.collect(host).index_parts == 0
    world.check()


def read_all(world: World, host: Repository) -> Iterator[parts.IndexPart]:
    for key in sorted(world.keys("index/")):
        yield parts.decode(host.keyring, bytes.fromhex(key.removeprefix("index/")), world.tier.get(key))


def test_notes_of_damage_are_left_alone(world: World) -> None:
    host = world.host()
    history(world, host, range(1, 6))
    point = host.points()[-1]
    wanted = [bytes.fromhex(chunk) for each in point.artifacts for chunk in each.chunks]
    for _ in range(4):
        host.index.note_damaged(host.index.locate(wanted).values())
    gc.collect(host)
    assert len(world.keys("index/")) == 1 + 4
    assert host.index.known(wanted) == set()
    assert gc.collect(host).index_parts == 0


def test_parts_that_contradict_each_other_stay(world: World) -> None:
    host = world.host()
    history(world, host, range(1, 3))
    part = next(read_all(world, host))
    rows = part.rows[part.rows["pack"] == 0]["toc"]
    host.index.add([PackEntry(part.packs[0], np.concatenate([rows, rows]))])
    before = world.keys("index/")
    with pytest.raises(IntegrityError, match="different things about pack"):
        gc.collect(host)
    assert world.keys("index/") == before
