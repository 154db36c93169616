"""How fast and when moves touch a tier; the clock is moved by hand."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.upkeep.tiered import TieredWorld
from tests.upkeep.world import HOUR
from vmcellar.config.model import Config
from vmcellar.config.units import parse_window
from vmcellar.policy.bandwidth import Throttle
from vmcellar.policy.tier_pace import TierPace
from vmcellar.progress import CancelToken
from vmcellar.repository.restore_pace import restore_pace
from vmcellar.restore.plan import make_plan
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.upkeep.bring import bring
from vmcellar.upkeep.limits import Limits, limits_of
from vmcellar.upkeep.rebalance import Rules


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


def test_what_is_read_written_and_read_back_counts_for_each_tier(world: LimitedWorld, tmp_path: Path) -> None:
    taken: Counter[str] = Counter()
    world.limits = Limits(counting(tmp_path, taken))
    world.now = at(12)
    report = world.rebalance()
    to_warm = sum(move.size for move in report.moves if move.copy == ("warm",))
    mirrored = {mirror.tier: mirror.bytes for mirror in report.mirrors}
    assert report.bytes == to_warm > 0
    assert taken["warm"] == 2 * to_warm + 2 * mirrored["warm"]
    assert taken["hot"] == to_warm + mirrored["warm"] + mirrored["cold"]


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
