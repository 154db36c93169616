"""Mirrors keep what hot can only have lost, and the run says so: nothing good is removed because hot is damaged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.cellar import Cellar, stand_ins
from tests.restore.test_restore import damage, flip_one
from tests.upkeep.test_beside import PausedTier
from tests.upkeep.tiered import NAMES, PLACEMENT, TieredWorld
from tests.upkeep.world import DAY
from vmcellar.config.prices import Prices
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.errors import PermanentError, TransientError
from vmcellar.policy.placement import sites_of
from vmcellar.repository import points
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repair import RepairRequest, repair
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.upkeep.pins import hold, pin, unpin
from vmcellar.upkeep.rebalance import RebalanceReport, Rules, rebalance
from vmcellar.upkeep.survey import survey


@pytest.fixture
def world(tmp_path: Path, pool: ThreadPoolExecutor) -> TieredWorld:
    return TieredWorld.make(tmp_path, pool)


def mirrored_on(world: TieredWorld, key: str) -> list[str]:
    return [name for name, tier in world.others.items() if tier.exists(key)]


def kept(report: RebalanceReport) -> list[str]:
    return [text for mirror in report.mirrors for text in mirror.kept]


def pack_of_the_first_file(world: TieredWorld) -> str:
    """Two points, of which the second shares no map node with the first, and the pack of the file that they share; the
    first point is gone, and the mirrors are up to date.
    """
    host = world.host()
    first = world.back_up(host, {place: 100 + place for place in range(6)})
    world.now += DAY
    second = world.back_up(host, {place: 200 + place for place in range(6)}, first)
    drop(world, first.id)
    world.now += DAY
    assert world.rebalance().ok
    return pack_of(host, second.artifacts[0].chunks[0])


def pack_of(host: Repository, chunk: str) -> str:
    name = bytes.fromhex(chunk)
    return host.index.locate([name])[name].pack.key


def drop(world: TieredWorld, point: str) -> None:
    world.tier.delete(f"points/{point}")
    del world.model[point]


def test_a_pack_that_holds_only_files_and_is_lost_on_hot_stays_on_the_mirrors(world: TieredWorld) -> None:
    """No map node in it is needed any more, so walking the maps does not meet it."""
    key = pack_of_the_first_file(world)
    world.tier.delete(key)
    report = world.rebalance()
    assert not report.ok
    assert report.lost == (key,)
    assert survey(world.host("looker")).lost == (key,)
    assert kept(report) == [
        f"{key} is missing on {world.tier!r}; `vmcellar verify --all --repair --from {name}` brings it back"
        for name in ("warm", "cold")
    ]
    assert mirrored_on(world, key) == ["warm", "cold"]
    mended = repair(world.host("mender"), world.others["warm"], RepairRequest())
    assert [each.key for each in mended.repaired] == [key]
    world.check()
    assert verify_all(world.host("verifier"), deep=True).ok
    assert world.rebalance().ok


def test_what_a_damaged_point_may_need_stays_on_the_mirrors(world: TieredWorld) -> None:
    """Nobody can tell what it needs; once it is dropped, its metadata goes from the mirrors as well."""
    host = world.host()
    first = world.back_up(host, {place: 100 + place for place in range(6)})
    world.now += DAY
    second = world.back_up(host, {place: 200 + place for place in range(6)}, first)
    assert world.rebalance().ok
    key = pack_of(host, second.disks[0].root)
    damage(world.folder / "hot" / "points" / second.id, flip_one)
    world.tier.delete(key)
    world.rebalance()
    assert mirrored_on(world, key) == ["warm", "cold"]
    world.now += DAY
    world.back_up(host, {place: 300 + place for place in range(6)}, first)
    drop(world, second.id)
    assert world.rebalance().ok
    assert mirrored_on(world, key) == []


@pytest.mark.parametrize("held", [False, True])
def test_a_pinned_point_that_is_lost_on_hot_stays_on_the_mirrors_with_what_it_needs(
    world: TieredWorld, held: bool
) -> None:
    host = world.host()
    first = world.back_up(host, {place: 100 + place for place in range(6)})
    world.now += DAY
    second = world.back_up(host, {place: 200 + place for place in range(6)}, first)
    world.now += DAY
    world.back_up(host, {place: 300 + place for place in range(6)}, second)
    if held:
        hold(host, second, "a boot", "a VM runs from it")
    else:
        pin(host, second, "for the auditors")
    assert world.rebalance().ok
    maps = pack_of(host, second.disks[0].root)
    world.tier.delete(f"points/{second.id}")
    world.tier.delete(maps)
    report = world.rebalance()
    assert not report.ok
    assert f"`vmcellar verify {second.id} --repair --from warm` brings it back" in kept(report)[0]
    assert mirrored_on(world, f"points/{second.id}") == ["warm", "cold"]
    assert mirrored_on(world, maps) == ["warm", "cold"], "what it needs"
    unpin(host, second.id)
    world.model.pop(second.id)
    assert world.rebalance().ok, "whoever unpins it has said that it may go"
    assert mirrored_on(world, f"points/{second.id}") == []


def taken_back(world: TieredWorld, parent: RestorePoint) -> bytes:
    """A point that mirrors copied between its write and the look after which its writer took it back; its object."""
    copied: list[bytes] = []

    class Slow(PausedTier):
        late = True

    def pause() -> None:
        world.rebalance()
        (key,) = world.keys("points/") - {f"points/{parent.id}"}
        copied.append(world.tier.get(key))
        for lease in world.keys("leases/"):
            world.tier.delete(lease)

    tier = Slow(world.tier)
    tier.pause = pause
    with pytest.raises(TransientError, match="was taken away"):
        world.back_up(world.host("slow", world.cellar(tier)), {0: 7}, parent)
    assert world.keys("points/") == {f"points/{parent.id}"}
    return copied[0]


def test_a_point_that_was_taken_back_leaves_the_mirrors_at_the_next_move(world: TieredWorld) -> None:
    host = world.host()
    first = world.back_up(host, {0: 1})
    world.now += DAY
    taken_back(world, first)
    (note,) = world.keys("withdrawn/")
    (key,) = {key for key, _ in world.others["warm"].list("points/")} - {f"points/{first.id}"}
    assert key.removeprefix("points/") in note
    assert world.rebalance().ok
    assert mirrored_on(world, key) == []
    assert world.keys("withdrawn/") == {note}, "until there is a newer point: a mirror may have been away"
    world.now += DAY
    world.back_up(host, {0: 2}, first)
    assert world.rebalance().ok
    assert world.keys("withdrawn/") == set()
    world.check()


def test_a_lost_point_is_not_taken_for_one_that_was_taken_back(world: TieredWorld) -> None:
    """Of the same id: the run that was tried again, and committed."""
    host = world.host()
    first = world.back_up(host, {0: 1})
    world.now += DAY
    before = taken_back(world, first)
    (name,) = [key.removeprefix("points/") for key, _ in world.others["warm"].list("points/") if first.id not in key]
    assert world.rebalance().ok
    point = replace(points.decode(host.keyring, host.id, name, before), run_seconds=9.0)
    world.tier.put(f"points/{name}", points.encode(host.keyring, host.id, point))
    assert world.rebalance().ok
    assert mirrored_on(world, f"points/{name}") == ["warm", "cold"]
    world.tier.delete(f"points/{name}")
    with pytest.raises(PermanentError, match="lacks the newest"):
        world.rebalance()
    assert mirrored_on(world, f"points/{name}") == ["warm", "cold"]


@pytest.mark.parametrize("others", [0, 1])
def test_a_slot_to_which_epochs_are_sealed_stays_on_the_mirrors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Nobody removes one and leaves its epochs."""
    for module, name, value in stand_ins():
        monkeypatch.setattr(module, name, value)
    for name in NAMES[1:]:
        (tmp_path / name).mkdir()
    cellar = Cellar(tmp_path, recipient=True)
    cellar.make_folder()
    private, *more = (PrivateKey.generate() for _ in range(1 + others))
    Repository.init(cellar.config, [private.public, *(each.public for each in more)]).close()
    cellar.write("web", 1)
    cellar.back_up("web")
    rules = Rules(sites_of(PLACEMENT, dict.fromkeys(NAMES, Prices())), 1)
    assert rebalance(cellar.open(), rules).ok
    slot = f"keys/{private.public.id}"
    (tmp_path / "hot" / slot).unlink()
    report = rebalance(cellar.open(), rules)
    assert not report.ok
    assert [slot in text for text in kept(report)] == [True, True]
    assert all((tmp_path / name / slot).exists() for name in NAMES[1:])
