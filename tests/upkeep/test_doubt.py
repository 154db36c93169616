"""What deletes or overwrites stops where it must doubt: each case lost data once, or told of a loss that was none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tiers.faulty import FaultyTier
from tests.upkeep.tiered import NAMES, TieredWorld
from tests.upkeep.world import DAY
from vmcellar.config.placement import Placement
from vmcellar.config.prices import Prices
from vmcellar.errors import PermanentError, TransientError
from vmcellar.policy.placement import sites_of
from vmcellar.repository import layout, leases
from vmcellar.repository.repair import RepairRequest, repair
from vmcellar.tiers.base import ArchivedError, TierReader
from vmcellar.tiers.local import LocalTier
from vmcellar.upkeep import gc, pins, prune
from vmcellar.upkeep.rebalance import RebalanceReport, Rules, rebalance
from vmcellar.upkeep.survey import survey

EPOCH = f"epochs/{'0' * 32}-holder"


@pytest.fixture
def world(tmp_path: Path, pool: ThreadPoolExecutor) -> TieredWorld:
    return TieredWorld.make(tmp_path, pool)


def damage(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:20])


class Frozen(LocalTier):
    """Packs there must be thawed before they can be read."""

    def open(self, key: str) -> TierReader:
        if key.startswith("data/"):
            raise ArchivedError(f"{key} must be thawed")
        return super().open(key)


class Hooked(LocalTier):
    """Calls `hook` once: before the first `operation` on what lies below `prefix`, or after it if it is a listing."""

    def __init__(self, path: Path, operation: str, prefix: str, hook: Callable[[], object]) -> None:
        super().__init__(path)
        self._wanted, self._hooks = (operation, prefix), [hook]

    def _call(self, operation: str, key: str) -> None:
        if operation == self._wanted[0] and key.startswith(self._wanted[1]) and self._hooks:
            self._hooks.pop()()

    def delete(self, key: str) -> None:
        self._call("delete", key)
        super().delete(key)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        yield from super().list(prefix)
        self._call("list", prefix)


def test_two_names_of_one_place_are_no_two_tiers(world: TieredWorld) -> None:
    """Each pack is on both, then, and a copy too many would be deleted from either."""
    (world.folder / "cold").rmdir()
    (world.folder / "cold").symlink_to(world.folder / "warm")
    world.others["cold"] = LocalTier(world.folder / "cold", name="cold")
    world.daily(world.host(), 1)
    world.now += 10 * DAY
    with pytest.raises(PermanentError, match=r"tier warm .* and tier cold .* are the same place"):
        world.rebalance()
    assert not list((world.folder / "warm" / "probe").iterdir())


@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_a_mirror_keeps_the_key_of_an_epoch_that_hot_lost(world: TieredWorld, harm: Callable[[Path], None]) -> None:
    world.tier.put(EPOCH, b"what opens the data packs of a process")
    world.back_up(world.host(), {0: 1})
    assert world.rebalance().ok
    harm(world.folder / "hot" / EPOCH)
    report = world.rebalance()
    assert not report.ok
    assert [kept.partition(" ")[0] for mirror in report.mirrors for kept in mirror.kept] == [EPOCH, EPOCH]
    assert world.others["warm"].get(EPOCH) == b"what opens the data packs of a process"


def test_of_two_lengths_the_whole_object_is_mirrored(world: TieredWorld) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1})
    world.back_up(host, {0: 2}, first)
    world.rebalance()
    key = f"points/{first.id}"
    whole = world.tier.get(key)
    cut(world.folder / "warm" / key)
    report = world.rebalance()
    assert report.ok
    assert world.others["warm"].get(key) == whole
    cut(world.folder / "hot" / key)
    report = world.rebalance()
    assert not report.ok
    assert "--repair --from warm" in report.mirrors[0].kept[0]
    assert world.others["warm"].get(key) == whole


def test_a_hot_tier_of_an_older_state_takes_nothing_from_the_mirrors(world: TieredWorld) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1})
    shutil.copytree(world.folder / "hot", world.folder / "older")
    world.now += DAY
    second = world.back_up(host, {0: 2}, first)
    world.rebalance()
    shutil.rmtree(world.folder / "hot")
    (world.folder / "older").rename(world.folder / "hot")
    world.reopen()
    with pytest.raises(PermanentError, match=f"lacks the newest .*{second.id}"):
        world.rebalance(world.host("later"))
    assert world.others["cold"].exists(f"points/{second.id}")


def test_a_backup_beside_a_survey_is_no_loss(world: TieredWorld) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1})
    beside = Hooked(world.folder / "hot", "list", "data/", lambda: world.back_up(host, {0: 2}, first))
    assert survey(world.host("looker", world.cellar(beside))).lost == ()


def test_a_pin_that_comes_as_the_point_is_dropped_holds(world: TieredWorld) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1})
    second = world.back_up(host, {0: 2}, first)
    beside = Hooked(world.folder / "hot", "delete", "points/", lambda: pins.pin(world.host("other"), first))
    decisions = [prune.Decision(first, keep=False, why="old"), prune.Decision(second, keep=True, why="new")]
    assert prune.drop(world.host("pruner", world.cellar(beside)), decisions) == []
    assert world.tier.exists(f"points/{first.id}")


class Forgetful(LocalTier):
    """Lists no pins any more once a point was deleted."""

    deleted = False

    def delete(self, key: str) -> None:
        super().delete(key)
        self.deleted = self.deleted or key.startswith("points/")

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        if self.deleted and prefix == layout.PINS:
            raise TransientError("the connection was reset")
        return super().list(prefix)


def test_a_point_is_back_when_nobody_can_tell_whether_it_was_pinned_meanwhile(world: TieredWorld) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1})
    second = world.back_up(host, {0: 2}, first)
    decisions = [prune.Decision(first, keep=False, why="old"), prune.Decision(second, keep=True, why="new")]
    with pytest.raises(TransientError, match="reset"):
        prune.drop(world.host("pruner", world.cellar(Forgetful(world.folder / "hot"))), decisions)
    assert world.tier.exists(f"points/{first.id}")
    world.check()


def test_gc_deletes_nothing_while_a_pinned_point_is_missing(world: TieredWorld) -> None:
    """Whoever dropped it died before it looked for pins again; what the point needs may be all that is left of it."""
    host = world.host()
    first = world.back_up(host, {0: 1})
    world.back_up(host, {0: 2})
    pins.pin(host, first)
    world.tier.delete(f"points/{first.id}")
    for _ in range(2):
        world.now += 2 * DAY
        with pytest.raises(PermanentError, match=f"{first.id} is pinned, but is not there: nothing is deleted"):
            gc.collect(world.host("collector"))
    assert world.keys("marks/") == set()
    pins.unpin(host, first.id)
    assert gc.collect(world.host("collector")).marked


def test_renewals_go_on_after_one_whose_answer_was_lost(world: TieredWorld) -> None:
    host = world.host()
    tier = FaultyTier(world.tier, 3, after=True, error=TransientError("no answer"), operations=frozenset({"put"}))
    lease = leases.HeldLease(tier, host.keyring, "backup web", lambda: world.now)
    for renewal in range(4):
        world.now += leases.SECONDS / 3
        if renewal:
            lease.renew()
        else:
            with pytest.raises(TransientError, match="no answer"):
                lease.renew()
    assert tier.fired
    (found,) = leases.found(world.tier, host.keyring)
    assert (found.newest.expires, len(found.objects)) == (world.now + leases.SECONDS, 2)
    lease.release()
    assert world.keys("leases/") == set()


def test_a_point_that_is_gone_is_not_pinned(world: TieredWorld) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1})
    world.tier.delete(f"points/{first.id}")
    with pytest.raises(PermanentError, match="not there any more"):
        pins.pin(host, first)
    assert pins.pinned(host) == set()


def test_a_damaged_copy_goes_beside_one_that_must_be_thawed(world: TieredWorld) -> None:
    world.copies = 3
    world.back_up(world.host(), {0: 1})
    world.rebalance()
    world.others["cold"] = Frozen(world.folder / "cold", name="cold")
    key = min(world.lying())
    damage(world.folder / "hot" / key)
    report = repair(world.host("mender"), world.others["warm"], RepairRequest(deep=True))
    assert [each.key for each in report.repaired] == [f"{key} on hot"]
    assert world.lying()[key] == ("warm", "cold")


class Unreachable(LocalTier):
    """Its packs cannot be read now."""

    def open(self, key: str) -> TierReader:
        if key.startswith("data/"):
            raise TransientError(f"{key}: the connection was reset")
        return super().open(key)


def test_a_copy_that_cannot_be_reached_is_not_taken_for_damaged(world: TieredWorld) -> None:
    world.copies = 3
    world.back_up(world.host(), {0: 1})
    world.rebalance()
    lying = world.lying()
    for name in ("warm", "cold"):
        world.others[name] = Unreachable(world.folder / name, name=name)
    report = repair(world.host("mender"), LocalTier(world.folder / "hot"), RepairRequest(deep=True))
    assert not report.repaired
    assert world.lying() == lying


class BadMedium(LocalTier):
    """Does not keep what it is given."""

    def replace(self, path: Path, key: str) -> None:
        damage(path)
        super().replace(path, key)


def test_a_repair_on_a_bad_medium_leaves_the_other_copy_alone(world: TieredWorld) -> None:
    del world.others["warm"]
    placement = Placement.model_validate({"hot": "7d", "cold": "rest"})
    rules = Rules(sites_of(placement, dict.fromkeys(("hot", "cold"), Prices())), copies=2)
    world.back_up(world.host(), {0: 1})
    assert rebalance(world.host("mover"), rules, at_once=1).ok
    shutil.copytree(world.folder / "hot", world.folder / "site")
    world.others["cold"] = Frozen(world.folder / "cold", name="cold")
    key = min(world.lying())
    damage(world.folder / "hot" / key)
    hot = BadMedium(world.folder / "hot")
    site = LocalTier(world.folder / "site")
    report = repair(world.host("mender", world.cellar(hot)), site, RepairRequest(deep=True))
    assert key in {each.key for each in report.not_repaired}
    assert world.lying()[key] == ("hot", "cold")


def test_a_mover_that_wakes_up_beyond_its_lease_deletes_no_last_copy(world: TieredWorld) -> None:
    """It was suspended between its last look at its lease and the deletion; a second one moves the pack back."""
    world.back_up(world.host(), {0: 1})
    world.now += 10 * DAY
    stay = Rules(sites_of(Placement.model_validate({"hot": "rest"}), dict.fromkeys(NAMES, Prices())))
    second: list[RebalanceReport] = []

    def suspended() -> None:
        world.now += leases.SECONDS + leases.SKEW + 1
        second.append(rebalance(world.host("second"), stay, at_once=1))

    mover = world.host("mover", world.cellar(Hooked(world.folder / "hot", "delete", "data/", suspended)))
    world.rebalance(mover)
    assert [held.why.partition(",")[0] for held in second[0].held] == [f"a run on {os.uname().nodename}"]
    assert set(world.lying().values()) == {("warm",)}
    world.check()
    assert world.keys("drops/") == set()
    world.now += DAY
    assert rebalance(world.host("third"), stay, at_once=1).ok
    assert set(world.lying().values()) == {("hot",)}
    world.check("checker2")
