"""Moving packs between tiers: the rules are kept, every point restores at any time, and no death loses anything."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from blake3 import blake3

from tests.repository.writing import read_disk
from tests.tiers.faulty import DiedError, FaultyTier
from tests.upkeep.tiered import NAMES, TieredWorld, make_local
from tests.upkeep.world import DAY, piece
from vmcellar.errors import PermanentError, TransientError, UsageError
from vmcellar.progress import CancelToken
from vmcellar.repository import leases
from vmcellar.repository.scrub import verify_all
from vmcellar.tiers.base import ArchivedError, TierReader
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.local_reader import LocalReader
from vmcellar.tiers.mark import ReadOnlyTier
from vmcellar.upkeep import gc, pins
from vmcellar.upkeep.carry import Pace
from vmcellar.upkeep.survey import survey


@pytest.fixture
def world(tmp_path: Path, pool: ThreadPoolExecutor) -> TieredWorld:
    return TieredWorld.make(tmp_path, pool)


def assert_as_the_rules_say(world: TieredWorld) -> None:
    """Worked out the slow way: every point's chunks one by one, and the pack that each is read from."""
    host = world.host("judge")
    youngest: dict[str, float] = {}
    for point in host.points():
        chunks = {row["chunk"].tobytes() for rows in host.map(point.disks[0]).rows() for row in rows}
        for found in host.locate(sorted(chunks)).values():
            youngest[found.pack.key] = max(youngest.get(found.pack.key, 0.0), point.time)
    host.close()
    limits = {"hot": 7 * DAY, "warm": 30 * DAY, "cold": float("inf")}
    wanted = {key: (next(name for name in NAMES if world.now - time < limits[name]),) for key, time in youngest.items()}
    lying = world.lying()
    assert {key: lying.get(key) for key in wanted} == wanted


def test_sixty_days_of_points_lie_where_the_rules_say(world: TieredWorld) -> None:
    host = world.host()
    parent = None
    for day in range(60):
        parent = (
            world.daily(host, 1, parent)[0] if parent is None else world.back_up(host, {day % 5: 1000 + day}, parent)
        )
        world.now += DAY / 2
        if day % 6 == 5:
            assert world.rebalance().ok
            assert_as_the_rules_say(world)
            assert world.rebalance(dry_run=True).moves == (), "another run has nothing to do"
            gc.collect(world.host("collector"))
        if day % 20 == 19:
            assert len(world.check(f"day{day}")) == day + 1
        world.now += DAY / 2
    assert set(world.lying().values()) == {("hot",), ("warm",), ("cold",)}


def test_a_dry_run_says_what_a_run_then_does(world: TieredWorld) -> None:
    world.daily(world.host(), 40, places=5)
    before = world.lying()
    told = world.rebalance(dry_run=True)
    assert world.lying() == before
    assert told.moves
    assert sum(mirror.copied for mirror in told.mirrors) > 0
    assert list(world.others["warm"].list("points/")) == []
    done = world.rebalance()
    assert (done.moves, done.bytes, done.mirrors) == (told.moves, told.bytes, told.mirrors)


@pytest.mark.parametrize("name", NAMES)
def test_a_death_at_any_step_loses_nothing_and_the_next_run_goes_on(world: TieredWorld, name: str) -> None:
    """Of what is written to one tier or deleted there, at every third step: before it, after it, and so on."""
    host = world.host()
    points = world.daily(host, 3)
    world.now += 4 * DAY
    points += world.daily(host, 1, points[-1])
    world.now += 25 * DAY
    world.back_up(host, {0: 5000, 1: 5001, 2: 5002}, points[-1])
    host.close()
    kept = world.folder / "kept"
    for tier in NAMES:
        shutil.copytree(world.folder / tier, kept / tier)
    for step in range(1, 200, 3):
        for tier in NAMES:
            shutil.rmtree(world.folder / tier)
            shutil.copytree(kept / tier, world.folder / tier)
        world.reopen()
        fault = FaultyTier(world.others.get(name, world.tier), step, after=step % 2 == 0)
        if name != "hot":
            world.others[name] = fault
        mover = world.host("mover", world.cellar(fault if name == "hot" else None))
        with suppress(DiedError):
            world.rebalance(mover)
        mover.close()
        world.reopen()
        assert len(world.check()) == 5
        if not fault.fired:
            break
        world.now += leases.SECONDS + leases.SKEW + 1
        assert world.rebalance().ok
        assert_as_the_rules_say(world)
        world.check()
        world.now -= leases.SECONDS + leases.SKEW + 1
    assert step > 5
    assert not fault.fired


def test_two_copies_and_what_a_lost_tier_means(world: TieredWorld) -> None:
    world.copies = 2
    host = world.host()
    world.daily(host, 40, places=5)
    world.rebalance()
    assert set(world.lying().values()) == {("hot", "warm"), ("warm", "cold")}
    shutil.rmtree(world.folder / "warm")
    world.others["warm"] = make_local(world.folder, "warm")
    assert len(world.check()) == 40, "no point is lost with one tier"
    report = world.rebalance()
    assert len(report.moves) == len(world.lying())
    assert all(move.copy == ("warm",) for move in report.moves)
    assert set(world.lying().values()) == {("hot", "warm"), ("warm", "cold")}
    shutil.rmtree(world.folder / "cold")
    world.others["cold"] = make_local(world.folder, "cold")
    assert len(world.check()) == 40


def test_a_lost_tier_without_a_second_copy_is_named_point_by_point(world: TieredWorld) -> None:
    host = world.host()
    points = world.daily(host, 40)
    world.rebalance()
    gone = {key for key, tiers in world.lying().items() if tiers == ("cold",)}
    shutil.rmtree(world.folder / "cold")
    world.others["cold"] = make_local(world.folder, "cold")
    report = world.rebalance()
    assert set(report.lost) == gone
    assert not report.ok
    found = verify_all(world.host("verifier"))
    damaged = {each.point for finding in found.findings for each in finding.ranges}
    assert {finding.name for finding in found.findings} == gone
    assert {point.id for point in points if point.time > world.now - 30 * DAY} & damaged == set()
    assert damaged
    whole = {point.id for point in points} - damaged
    for name in damaged:
        del world.model[name]
        world.tier.delete(f"points/{name}")
    assert {point.id for point in world.check()} == whole


def test_a_tier_that_is_away_stops_the_move_and_is_no_loss(world: TieredWorld) -> None:
    world.daily(world.host(), 40)
    world.rebalance()
    world.others["cold"] = FaultyTier(
        world.others["cold"], 1, error=TransientError("cold: no answer"), operations=frozenset({"list"})
    )
    with pytest.raises(TransientError, match="no answer"):
        world.rebalance()
    cold = world.others["cold"]
    assert isinstance(cold, FaultyTier)
    world.others["cold"] = FaultyTier(
        cold.inner, 1, error=TransientError("cold: no answer"), operations=frozenset({"list"})
    )
    found = survey(world.host("looker"))
    assert list(found.away) == ["cold"]
    assert found.lost == ()


def test_a_damaged_copy_gives_way_to_the_whole_one_and_is_not_what_stays(world: TieredWorld) -> None:
    world.copies = 2
    host = world.host()
    world.daily(host, 12)
    world.rebalance()
    for key, tiers in world.lying().items():
        path = world.folder / tiers[0] / key
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 8] = bytes(8)
        path.write_bytes(data if key < "data/8" else data[: len(data) // 2])
    assert len(world.check()) == 12
    assert verify_all(world.host("verifier")).ok
    found = verify_all(world.host("deep verifier"), deep=True).findings
    assert {finding.kind for finding in found} == {"copy"}
    several = {key: tiers for key, tiers in world.lying().items() if len(tiers) > 1}
    assert {finding.name for finding in found} == {f"{key} on {tiers[0]}" for key, tiers in several.items()}
    world.now += 60 * DAY
    before = world.lying()
    report = world.rebalance()
    assert report.failed
    assert all("is not the same on" in failed.why for failed in report.failed)
    assert {key: world.lying()[key] for key in (each.key for each in report.failed)} == {
        each.key: before[each.key] for each in report.failed
    }
    world.check()


def test_what_only_pinned_points_need_stays(world: TieredWorld) -> None:
    host = world.host()
    points = world.daily(host, 3)
    pins.pin(host, points[0])
    only = {key for key, tiers in world.lying().items()}
    world.back_up(host, {place: 900 + place for place in range(6)}, points[-1])
    for point in points[1:]:
        world.tier.delete(f"points/{point.id}")
        del world.model[point.id]
    world.now += 50 * DAY
    world.rebalance()
    assert {world.lying()[key] for key in only} == {("hot",)}
    world.check()


def test_gc_takes_every_copy_and_runs_alone(world: TieredWorld) -> None:
    world.copies = 2
    host = world.host()
    points = world.daily(host, 10)
    world.rebalance()
    for point in points[:-1]:
        world.tier.delete(f"points/{point.id}")
        del world.model[point.id]
    for _ in range(3):
        gc.collect(world.host("collector"))
        world.now += 2 * DAY
    found = survey(world.host("looker"))
    assert all(pack.youngest is not None for pack in found.packs)
    assert len(found.packs) == len(world.lying())
    world.check()
    with (
        leases.holding(world.tier, host.keyring, leases.GC, host.clock),
        pytest.raises(PermanentError, match="gc runs"),
    ):
        world.rebalance()
    moving = leases.holding(world.tier, host.keyring, leases.MOVE, host.clock)
    with moving, pytest.raises(PermanentError, match="tiers move runs"):
        gc.collect(world.host("collector"))


def test_a_mirror_takes_the_place_of_a_hot_tier_that_is_lost(world: TieredWorld) -> None:
    world.copies = 2
    host = world.host()
    points = world.daily(host, 40)
    world.rebalance()
    shutil.rmtree(world.folder / "hot")
    cold = world.others.pop("cold")
    warm = world.others.pop("warm")
    world.others["cold"] = cold
    rescued = world.host("rescue", world.cellar(ReadOnlyTier(warm)))
    assert [point.id for point in rescued.points()] == [point.id for point in points]
    assert isinstance(warm, LocalTier)
    world.tier = warm
    assert len(world.check("rescue2")) == 40


def test_mirrors_follow_and_are_never_emptied(world: TieredWorld) -> None:
    host = world.host()
    points = world.daily(host, 3)
    world.rebalance()
    mirrored = [
        key for prefix in ("keys/", "meta/", "index/", "points/") for key, _ in world.others["cold"].list(prefix)
    ]
    assert len(mirrored) == len(
        [key for prefix in ("keys/", "meta/", "index/", "points/") for key in world.keys(prefix)]
    )
    world.tier.delete(f"points/{points[0].id}")
    del world.model[points[0].id]
    assert [mirror.removed for mirror in world.rebalance().mirrors] == [1, 1]
    assert not world.others["warm"].exists(f"points/{points[0].id}")
    for point in points[1:]:
        world.tier.delete(f"points/{point.id}")
    with pytest.raises(PermanentError, match="nothing is removed"):
        world.rebalance()
    assert len(list(world.others["warm"].list("points/"))) == 2
    world.tier.delete("keys/one")
    with pytest.raises(PermanentError, match="holds no whole repository"):
        world.rebalance()


def test_one_tier_alone_has_nothing_to_move(world: TieredWorld) -> None:
    with pytest.raises(UsageError, match="one tier only"):
        world.rebalance(world.host("alone", world.tier))


def test_the_pace_is_kept_by_all_threads_together() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(100, lambda: now[0], sleep)
    for _ in range(10):
        pace.take(100, CancelToken())
    assert now[0] == pytest.approx(9.0)
    Pace(None, lambda: now[0], sleep).take(1 << 40, CancelToken())
    assert now[0] == pytest.approx(9.0)


def test_what_cooled_leaves_a_pack_that_new_points_still_need(world: TieredWorld) -> None:
    """A full of six pieces in one pack: four are replaced and cool, two are needed for ever."""
    host = world.host()
    first = world.back_up(host, {place: 100 + place for place in range(6)})
    world.now += DAY
    second = world.back_up(host, {place: 200 + place for place in range(4)}, first)
    (old,) = {key for key, _ in world.tier.list("data/")} & {
        found.pack.key for found in host.locate([host.keyring.chunk_id(piece(105))]).values()
    }
    world.now += 10 * DAY
    world.back_up(host, {0: 300}, second)
    assert world.rebalance(dry_run=True).separated == (old,)
    assert world.lying()[old] == ("hot",)
    report = world.rebalance()
    assert report.separated == (old,)
    world.check()
    assert world.lying()[old] == ("hot",)
    world.now += 2 * DAY
    gc.collect(world.host("collector"))
    assert old not in world.lying()
    where = {
        number: world.lying()[found.pack.key]
        for number in (*range(100, 106), *range(201, 204))
        for found in world.host("looker").locate([host.keyring.chunk_id(piece(number))]).values()
    }
    assert where == {number: ("warm",) if number < 104 else ("hot",) for number in where}
    assert world.rebalance().separated == ()
    assert len(world.check()) == 3


class FrozenReader(LocalReader):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        raise ArchivedError(f"{len(buffer)} bytes at {offset} must be thawed")


class FrozenTier(LocalTier):
    """Packs cannot be read here, as in an archive class."""

    def open(self, key: str) -> TierReader:
        return FrozenReader(self, key, self.path / key) if key.startswith("data/") else super().open(key)

    def stored_digest(self, key: str) -> str:
        return blake3(self.get(key)).hexdigest()


def test_gc_deletes_what_was_taken_apart_though_its_copy_is_archived_now(world: TieredWorld) -> None:
    """The copy was checked when it was written, and compared when it was moved; now it can only be measured."""
    world.others["cold"] = FrozenTier(world.folder / "cold", name="cold")
    host = world.host()
    first = world.back_up(host, {place: 100 + place for place in range(6)})
    world.now += DAY
    second = world.back_up(host, {place: 200 + place for place in range(4)}, first)
    world.now += 40 * DAY
    third = world.back_up(host, {0: 300}, second)
    report = world.rebalance()
    (old,) = report.separated
    assert ("cold",) in world.lying().values()
    world.now += 2 * DAY
    assert old in gc.collect(world.host("collector")).deleted
    assert old not in world.lying()
    assert read_disk(world.host("reader"), third) == world.model[third.id]
    with pytest.raises(ArchivedError):
        read_disk(world.host("reader"), first)
    world.reopen()
    assert len(world.check()) == 3, "once all is thawed"


def test_a_copy_in_an_archive_that_is_not_what_was_sent_keeps_the_pack_where_it_was(world: TieredWorld) -> None:
    class Garbling(FrozenTier):
        def stored_digest(self, key: str) -> str:
            return f"not that of {key}"

    world.others["cold"] = Garbling(world.folder / "cold", name="cold")
    world.daily(world.host(), 1)
    world.now += 40 * DAY
    report = world.rebalance()
    assert [failed.key for failed in report.failed] == list(world.lying())
    assert set(world.lying().values()) == {("hot",)}
    assert len(world.check()) == 1
