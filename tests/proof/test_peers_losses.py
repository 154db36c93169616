"""How users of other programs lost backups, as they reported it step by step, each test named after its issue."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.restore.world import Settings
from tests.restore.world import World as DiskWorld
from tests.tiers.faulty import FaultyTier
from tests.upkeep.world import DAY, HOUR, World
from vmcellar.config.jobs import KeepByAge
from vmcellar.errors import IntegrityError, PermanentError, VmcellarError
from vmcellar.repository import codec
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.upkeep import gc, pins, prune

MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def world(tmp_path: Path, pool: ThreadPoolExecutor) -> World:
    """A repository whose clock is moved by hand."""
    return World.make(tmp_path, pool)


@pytest.fixture
def disks(tmp_path: Path, pool: ThreadPoolExecutor) -> Iterator[DiskWorld]:
    """A repository with the real keys."""
    settings = Settings(tmp_path / "state", tmp_path / "hot")
    made = DiskWorld(settings, Repository.init(settings), pool)
    yield made
    made.repository.close()


def keep_last(world: World, host: Repository, count: int) -> None:
    plan = prune.plan(
        host.points(), prune.rules_for_all(KeepByAge(last=count)), pins=pins.pinned(host), now=world.now
    )  # fmt: skip
    for point in prune.drop(host, plan):
        del world.model[point.id]


def test_benji_119_retention_and_cleanup_beside_running_backups(world: World) -> None:
    """benji #119: retention and cleanup ran while backups did; blocks that these had found went, and later versions
    that shared them were invalid, too. Here a backup finds pieces of points that are dropped and collected before it
    commits.
    """
    host, other = world.host("a"), world.host("b")
    first = world.back_up(host, {0: 1, 1: 2}, vm="db")
    world.now += HOUR
    world.back_up(host, {0: 3, 1: 4}, first, vm="db")  # pieces 1 and 2 are the first point's alone now

    def beside() -> None:
        keep_last(world, other, 1)
        for _ in range(3):
            gc.collect(other)
            world.now += 2 * DAY
            held.renew()

    with host.working_on("web") as held:
        world.back_up(host, {0: 1, 1: 2, 2: 5}, vm="web", lease=False, before_commit=beside)
    assert first.id not in {point.id for point in world.check()}
    for number in range(3):
        world.now += DAY
        world.back_up(world.host("c"), {0: 1, 3: number}, vm=f"late-{number}")
        gc.collect(other)
    assert len(world.check()) == 5


def test_kopia_1087_a_piece_of_metadata_is_missing(world: World) -> None:
    """kopia #1087: one blob that the index named was not there; maintenance could not run, nor anything else, and what
    others tried made it worse. Here all refuse to delete, the points that do not need it restore, backups go on, and
    when the piece comes back all is as it was.
    """
    host = world.host()
    first = world.back_up(host, {0: 1})
    world.now += HOUR
    second = world.back_up(host, {1: 2}, vm="db")
    garbage = world.back_up(host, {2: 3}, vm="gone")
    world.tier.delete(f"points/{garbage.id}")
    del world.model[garbage.id]
    gc.collect(host)
    world.now += 2 * DAY
    lost = f"meta/{second.metadata_packs[0][:2]}/{second.metadata_packs[0]}"
    data = world.tier.get(lost)
    world.tier.delete(lost)
    before = world.packs()
    for _ in range(2):
        with pytest.raises(VmcellarError, match=r"No such file|missing"):
            gc.collect(world.host("fresh"))
    assert world.packs() == before
    fresh = world.host("fresh")
    report = verify_all(fresh)
    assert {damaged.point for finding in report.findings for damaged in finding.ranges} == {second.id}
    third = world.back_up(fresh, {4: 4}, first)
    world.tier.put(lost, data)
    assert {point.id for point in world.check()} == {first.id, second.id, third.id}
    assert gc.collect(world.host("later")).deleted


def test_kopia_1949_a_collection_that_was_paused_for_hours(world: World) -> None:
    """kopia #1949: the lid was closed in the middle of maintenance; hours later it went on deleting what snapshots made
    meanwhile had come to need. Here a gc sleeps before its first deletion, beside backups that find the same pieces.
    """
    host = world.host()
    point = world.back_up(host, {0: 1, 1: 2})
    world.now += HOUR
    world.back_up(host, {0: 3, 1: 4}, point)
    keep_last(world, host, 1)
    gc.collect(host)
    world.now += 2 * DAY

    def lid_closed() -> None:
        world.now += 5 * HOUR
        world.back_up(world.host("b"), {0: 1, 1: 2}, vm="db")

    sleepy = world.host("sleepy", BeforeDelete(world.tier, action=lid_closed))
    try:
        gc.collect(sleepy)
    except VmcellarError as error:
        assert "lease" in error.message  # it was taken away from the one that slept
    sleepy.close()
    assert len(world.check()) == 2
    for _ in range(3):
        world.now += 2 * DAY
        gc.collect(world.host("late"))
    assert len(world.check()) == 2


@dataclass
class BeforeDelete(FaultyTier):
    """Does something before the first deletion of a pack."""

    action: Callable[[], object] | None = None

    def delete(self, key: str) -> None:
        if key.startswith(("data/", "meta/")) and self.action is not None:
            action, self.action = self.action, None
            action()
        super().delete(key)


def test_restic_4523_an_encoder_that_damages_what_it_packs(disks: DiskWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """restic #4523: at the highest level the compressor wrote frames that did not hold what had gone in; backups ended
    well, and only `check --read-data` told. Here what was placed is decoded before anything refers to it.
    """
    text = b"many times the same. " * 50_000
    real = codec.Compression.encode

    def wrong(self: codec.Compression, plain: bytes | memoryview) -> tuple[int, bytes | memoryview]:
        changed = bytearray(plain)
        changed[len(changed) // 2] ^= 1
        return real(self, bytes(changed))

    first = disks.add({"vda": text[:MIB]})
    monkeypatch.setattr(codec.Compression, "encode", wrong)
    with pytest.raises(IntegrityError, match="not what was stored"):
        disks.add({"vda": text[7 : MIB + 7]})
    monkeypatch.undo()
    assert [point.id for point in disks.repository.points()] == [first.id]
    assert verify_all(disks.repository, deep=True).ok


def test_longhorn_1385_backups_after_one_that_went_bad(disks: DiskWorld, tmp_path: Path) -> None:
    """longhorn #1385: data of a first backup was changed in the store; its restore failed, and so did that of every
    later backup, as they went on to refer to the bad block. Here the hint of the failed restore says what to type, and
    then the next one is whole.
    """
    disk = random.Random(1).randbytes(2 * MIB)
    bad = disks.add({"vda": disk})
    (pack,) = (path for path in (disks.settings.hot / "data").rglob("*") if path.stat().st_size > MIB)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 0x40
    pack.chmod(0o600)
    pack.write_bytes(data)
    with pytest.raises(IntegrityError) as refused:
        restore_point(disks.repository, bad, RestoreTarget(tmp_path / "b1", "raw"))
    assert "vmcellar verify --all --deep" in refused.value.hint
    assert not verify_all(disks.repository, deep=True).ok
    disks.last = None
    good = disks.add({"vda": disk[:MIB] + random.Random(2).randbytes(MIB)})
    report = restore_point(disks.repository, good, RestoreTarget(tmp_path / "b2", "raw"))
    assert report.disks[0].path.read_bytes() == disks.models[good.id]["vda"]


@pytest.mark.parametrize("when", [0.0, 4e9], ids=["1970", "2096"])
def test_pbs_5982_a_file_system_that_keeps_no_times(world: World, when: float) -> None:
    """PBS 5982: garbage collection marked chunks by their access time, and removed those in use where the file system
    did not keep it. Here no time of a file is ever looked at.
    """
    host = world.host()
    point = world.back_up(host, {0: 1, 1: 2})
    world.now += HOUR
    world.back_up(host, {0: 3}, point)
    before = world.packs()
    for _ in range(4):
        for path in world.tier.path.rglob("*"):
            os.utime(path, (when, when))
        assert gc.collect(host).deleted == ()
        world.now += 40 * DAY
    assert world.packs() == before
    assert len(world.check()) == 2


def test_the_points_are_not_mounted(world: World) -> None:
    """What all of the above come down to: never delete on a view that may be partial."""
    host = world.host()
    world.back_up(host, {0: 1})
    gone = world.back_up(host, {1: 2}, vm="gone")
    world.tier.delete(f"points/{gone.id}")
    del world.model[gone.id]
    gc.collect(host)
    world.now += 2 * DAY
    points = world.tier.path / "points"
    points.rename(world.folder / "unmounted")
    before = world.packs()
    for dry_run in (True, False):
        with pytest.raises(PermanentError, match="has no restore point"):
            gc.collect(world.host("fresh"), dry_run=dry_run)
    assert world.packs() == before
    (world.folder / "unmounted").rename(points)
    assert gc.collect(world.host("fresh")).deleted
    world.check()
