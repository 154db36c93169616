"""The walk over all points: chunks are looked up once, and it finds what a walk finds that looks up each every time."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.upkeep.world import DAY, HOUR, PIECES, World, piece
from vmcellar.progress import CancelToken, no_progress
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import gc
from vmcellar.upkeep.consolidate import consolidate
from vmcellar.upkeep.idset import Ids, IdSet, id_bytes, id_rows
from vmcellar.upkeep.reach import Reach

CHANGES = st.dictionaries(st.integers(0, PIECES - 1), st.integers(0, 5), min_size=1, max_size=4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["web", "db"]), CHANGES),
        st.tuples(st.just("drop"), st.integers(0, 9)),
        st.tuples(st.just("damage"), st.integers(1, 5)),
        st.sampled_from([("gc", 0), ("consolidate", 0)]),
    ),
    min_size=3,
    max_size=12,
)


class PlainReach(Reach):
    """Looks up every chunk of every leaf."""

    def _need_chunks(self, ids: Ids) -> None:
        self._need(id_bytes(ids))


def play(world: World, host: Repository, steps: list[tuple[str, object]]) -> None:
    """A repository with points that share, marked packs, packs that lie twice, and copies that failed a check."""
    newest: dict[str, RestorePoint] = {"web": world.back_up(host, {0: 1, 1: 2})}
    for what, how in steps:
        world.now += HOUR
        if what == "gc":
            gc.collect(host)
            world.now += DAY
        elif what == "consolidate":
            consolidate(host)
        elif what == "damage":
            assert isinstance(how, int)
            located = host.index.locate([host.keyring.chunk_id(piece(how))])
            host.index.note_damaged(located.values())
        elif what == "drop":
            assert isinstance(how, int)
            points = host.points()
            point = points[how % len(points)]
            if point.id not in {each.id for each in newest.values()}:
                world.tier.delete(f"points/{point.id}")
                del world.model[point.id]
        else:
            assert isinstance(how, dict)
            newest[what] = world.back_up(host, how, newest.get(what), vm=what)


@given(STEPS)
@settings(max_examples=12, deadline=None)
def test_it_finds_the_same_as_a_walk_that_looks_up_everything(steps: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        world = World.make(Path(folder), pool)
        host = world.host()
        play(world, host, steps)
        host.index.refresh()
        marked = frozenset[bytes]().union(*host.index.marks().values())
        walks = [kind(host, marked, no_progress, CancelToken()) for kind in (PlainReach, Reach)]
        for point in host.points():
            first, second = ({pack.id for pack in walk.add(point)} for walk in walks)
            assert first == second
        plain, quick = walks
        assert (quick.packs, quick.live, quick.relieved) == (plain.packs, plain.live, plain.relieved)
        host.close()


IDS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5)).map(lambda pair: bytes([pair[0]] * 8 + [pair[1]] * 24)), max_size=30
)


@given(st.lists(IDS, max_size=12))
def test_an_id_is_new_once_and_never_missed(batches: list[list[bytes]]) -> None:
    """Of these ids many have the same first 8 bytes, so that each may come out again, but none too seldom."""
    known: set[bytes] = set()
    ids = IdSet()
    for batch in batches:
        new = id_bytes(ids.add(id_rows(batch)))
        assert set(batch) - known <= set(new) <= set(batch)
        known.update(batch)


def test_random_ids_come_out_exactly_once() -> None:
    dice = np.random.default_rng(3)
    every = dice.integers(0, 256, (5000, 32), np.uint8)
    ids = IdSet()
    seen: set[bytes] = set()
    for _ in range(60):
        batch = every[dice.integers(0, len(every), 300)]
        new = id_bytes(ids.add(batch))
        assert sorted(new) == sorted(set(id_bytes(batch)) - seen)
        seen.update(new)
    assert len(ids) == len(seen)
