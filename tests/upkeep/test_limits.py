"""How fast and when moves touch a tier; the clock is moved by hand."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.upkeep.tiered import TieredWorld
from tests.upkeep.world import HOUR
from vmcellar.config.model import Config
from vmcellar.config.units import parse_window
from vmcellar.errors import CancelledError
from vmcellar.policy.bandwidth import Throttle
from vmcellar.policy.tier_pace import TierPace
from vmcellar.progress import CancelToken
from vmcellar.repository.packs import PackReader, groups
from vmcellar.repository.repository import Repository
from vmcellar.repository.restore_pace import restore_pace
from vmcellar.repository.scrub import verify_all
from vmcellar.restore.plan import chunk_ids, make_plan
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.restore.served_chunks import ChunkCache
from vmcellar.tiers.cellar import CellarTier
from vmcellar.upkeep.bring import bring
from vmcellar.upkeep.limits import Limits, limits_of
from vmcellar.upkeep.rebalance import Rules, rebalance


class LimitedWorld(TieredWorld):
    """Rules with the limits that a test sets."""

    limits = Limits()

    def rules(self) -> Rules:
        return replace(super().rules(), limits=self.limits)


@pytest.fixture
def world(tmp_path: Path, pool: ThreadPoolExecutor) -> LimitedWorld:
    made = LimitedWorld.make(tmp_path, pool)
    made.daily(made.host(), 12)
    return made


def at(hour: int) -> float:
    """An hour of the day after the last of the world's points."""
    return datetime(2027, 1, 28, hour, tzinfo=UTC).timestamp()


def test_packs_are_moved_within_the_window_of_each_tier_they_touch(world: LimitedWorld) -> None:
    window = parse_window("22:00-06:00")
    world.limits = Limits(windows={"warm": window})
    world.now = at(12)
    dry = world.rebalance(dry_run=True)
    report = world.rebalance()
    assert report.ok
    assert (report.moves, dry.moves) == ((), ())
    assert {held.why for held in report.held} == {"warm is moved to and from within 22:00-06:00 only"}
    assert set(world.lying().values()) == {("hot",)}
    world.now = at(23)
    report = world.rebalance()
    assert report.moves
    assert report.held == ()
    assert world.check()


def test_a_window_that_ends_in_the_middle_leaves_the_rest(world: LimitedWorld) -> None:
    world.limits = Limits(windows={"warm": parse_window("22:00-06:00")})
    world.now = at(23)
    moved: list[str] = []
    host = world.host("mover")
    world.others["warm"] = counting = world.others["warm"]
    adopt = counting.adopt

    def once(path: Path, key: str) -> None:
        adopt(path, key)
        if key.startswith("data/"):
            moved.append(key)
            world.now += 8 * HOUR

    counting.adopt = once  # type: ignore[method-assign]
    report = world.rebalance(host)
    assert [move.key for move in report.moves] == moved
    assert len(moved) == 1
    assert report.held
    assert report.ok


def test_as_many_packs_are_moved_at_once_as_was_asked_for(world: LimitedWorld) -> None:
    world.now = at(12)
    warm = world.others["warm"]
    adopt, lock, two = warm.adopt, threading.Lock(), threading.Barrier(2)
    running: set[str] = set()
    peaks = []

    def watched(path: Path, key: str) -> None:
        with lock:
            running.add(key)
            peaks.append(len(running))
            turn = len(peaks)
        if turn <= 2:
            two.wait(60)
        adopt(path, key)
        with lock:
            running.discard(key)

    host = world.host("mover")
    assert world.rebalance(host).ok  # mirrors, and what is taken apart
    world.now += 10 * 24 * HOUR
    warm.adopt = watched  # type: ignore[method-assign]
    report = rebalance(host, world.rules(), at_once=2)
    assert report.ok
    assert len([move for move in report.moves if "warm" in move.copy]) > 2
    assert max(peaks) == 2


def counting(folder: Path, taken: Counter[str]) -> TierPace:
    """Buckets that let all through, and count it."""

    class Counted(Throttle):
        def take(self, count: int, cancel: CancelToken) -> None:
            cancel.check()
            taken[self._path.name] += count

    return TierPace({name: Counted(folder / "buckets" / name, lambda: 1) for name in ("hot", "warm", "cold")})


def test_restores_and_fetches_count_for_the_tier_that_is_read(world: LimitedWorld, tmp_path: Path) -> None:
    assert world.rebalance().ok
    host = world.host()
    point = host.points()[0]
    lying = world.lying()
    packs = [key for key in make_plan(host, point).keys if key.startswith("data/")]
    assert {lying[key] for key in packs} == {("hot",), ("warm",)}
    taken: Counter[str] = Counter()
    host.restore_pace = counting(tmp_path, taken)
    report = restore_point(host, point, RestoreTarget(tmp_path / "out", "raw"))
    assert taken["hot"] > 0
    assert taken["warm"] > 0
    assert sum(taken.values()) == report.read
    taken.clear()
    brought = bring(host, packs, at_once=1)
    assert taken == {"warm": brought.bytes}


def test_serving_and_checking_count_as_restores_do(world: LimitedWorld, tmp_path: Path) -> None:
    world.copies = 2
    assert world.rebalance().ok
    host = world.host()
    taken: Counter[str] = Counter()
    host.restore_pace = counting(tmp_path, taken)
    report = verify_all(host, deep=True)
    assert report.ok
    needed = {key for point in host.points() for key in make_plan(host, point).keys if key.startswith("data/")}
    expected: Counter[str] = Counter()
    for key in needed:
        places = world.lying()[key]
        for place in (*places, places[0]):  # each copy, and once as a restore would
            expected[place] += read_by_a_check(host, place, key)
    assert taken["warm"] == expected["warm"] > 0
    assert taken["cold"] == expected["cold"]
    assert taken["hot"] > expected["hot"] > 0, "map nodes are read there, too"
    taken.clear()
    chunks = ChunkCache(host)
    try:
        point = host.points()[0]
        wanted = [chunk for rows in host.map(point.disks[0]).rows() for chunk in chunk_ids(rows)]
        assert set(chunks.read(wanted)) == set(wanted)
    finally:
        chunks.close()
    assert taken["hot"] > 0
    assert taken["warm"] > 0
    assert sum(taken.values()) >= sum(found.stored for found in host.locate(wanted).values())


def read_by_a_check(host: Repository, place: str, key: str) -> int:
    """The bytes of all objects of a pack, as they are read together."""
    assert isinstance(host.tier, CellarTier)
    with PackReader(host.tier.tier_named(place), key, host.keyring) as reader:
        return sum(group.end - group.start for group in groups(reader.locations()))


def test_a_server_that_ends_waits_for_no_bandwidth(world: LimitedWorld, tmp_path: Path) -> None:
    host = world.host()
    begun, taken = threading.Event(), []

    def standing_still(seconds: float) -> None:
        taken.append(seconds)
        begun.set()
        chunks._closing._event.wait()  # no clock: it stands until the server ends

    slow = Throttle(tmp_path / "buckets" / "hot", lambda: 1, clock=lambda: 0.0, sleep=standing_still)
    host.restore_pace = TierPace({"hot": slow})
    chunks = ChunkCache(host)
    wanted = [chunk for rows in host.map(host.points()[0].disks[0]).rows() for chunk in chunk_ids(rows)]
    with ThreadPoolExecutor(1) as client:
        reading = client.submit(chunks.read, wanted)
        assert begun.wait(60)
        chunks.close()
        with pytest.raises(CancelledError):
            reading.result()
    assert taken


def test_what_is_read_written_and_read_back_counts_for_each_tier(world: LimitedWorld, tmp_path: Path) -> None:
    taken: Counter[str] = Counter()
    world.limits = Limits(counting(tmp_path, taken))
    world.now = at(12)
    before = world.lying()
    report = world.rebalance()
    made = sum(host_size(world, key, places) for key, places in world.lying().items() if key not in before)
    apart = report.separated_bytes + 2 * made  # read; and written and read back
    to_warm = sum(move.size for move in report.moves if move.copy == ("warm",))
    mirrored = {mirror.tier: mirror.bytes for mirror in report.mirrors}
    assert report.bytes == to_warm > 0
    assert taken["warm"] == 2 * to_warm + 2 * mirrored["warm"]
    assert taken["hot"] == to_warm + mirrored["warm"] + mirrored["cold"] + apart
    assert apart > 0


def host_size(world: LimitedWorld, key: str, places: Sequence[str]) -> int:
    return {"hot": world.tier, **world.others}[places[0]].size(key)


def test_limits_come_from_the_configuration(tmp_path: Path) -> None:
    document = {
        "state": str(tmp_path),
        "tiers": {
            "hot": "/srv/hot",
            "warm": {"storage": "/srv/warm", "bandwidth": {"08:00-18:00": "20MiB/s"}, "moves": "22:00-06:00"},
            "cold": {"storage": "/srv/cold", "restores": "5MiB/s"},
        },
    }
    config = Config.model_validate(document)
    assert set(restore_pace(config).throttles) == {"cold"}
    limits = limits_of(config)
    assert set(limits.pace.throttles) == {"warm"}
    assert {name: str(window) for name, window in limits.windows.items()} == {"warm": "22:00-06:00"}
