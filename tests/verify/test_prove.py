"""Proofs of points: sound ones pass, and each planted fault lands in the expectation that is about it."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.restore.test_restore import cut, damage, flip_one
from tests.restore.world import World, changed_disk, random_disk
from tests.verify.images import broken, ext4, journal_dirty, partitioned
from vmcellar.errors import IntegrityError, PermanentError, TransientError
from vmcellar.quality import judge
from vmcellar.repository import layout, leases, points, scrub
from vmcellar.repository.evidence import Evidence
from vmcellar.repository.points import RestorePoint
from vmcellar.restore import prove
from vmcellar.restore.file_systems import check_file_systems
from vmcellar.restore.prove import ProofOrder, prove_point, unreadable
from vmcellar.restore.restore import restore_point
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository

XML = b"<domain><devices><disk device='disk'><target dev='vda'/></disk></devices></domain>"


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    return ext4(tmp_path)


def proven(world: World, point: RestorePoint, folder: Path, **order: object) -> Evidence:
    return prove_point(world.repository, point, ProofOrder(folder / "scratch", **order))  # type: ignore[arg-type]


def misses(record: Evidence) -> set[str]:
    """The critical expectations that the evidence does not meet, as Great Expectations says."""
    return set(judge.judge(record).expectations)


def packs(world: World, kind: str = "data") -> list[Path]:
    return sorted((p for p in (world.settings.hot / kind).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_sound_point_passes_whatever_its_disks_hold(world: World, disk: bytes, tmp_path: Path) -> None:
    dice = random.Random(1)
    other = random_disk(dice, 33 << 20)
    xml = XML.replace(b"</devices>", b"<disk device='cdrom'><target dev='hda'/></disk></devices>")
    first = world.add({"vda": disk, "vdb": partitioned(disk), "vdc": other}, {"domain.xml": xml})
    second = world.add(
        {"vda": disk, "vdb": partitioned(disk), "vdc": changed_disk(dice, other, 40 << 20)}, {"domain.xml": xml}
    )
    for point in (first, second):
        record = proven(world, point, tmp_path)
        assert [check for check in record.checks if not check.ok] == []
        assert record.verdict == "passed"
        vda, vdb, vdc = record.disks
        assert [(each.place, each.type, each.state) for each in vda.file_systems] == [("disk", "ext4", "clean")]
        assert [(each.place, each.state) for each in vdb.file_systems] == [
            ("partition 1", "clean"), ("partition 2", "not checked")
        ]  # fmt: skip
        assert (vdc.root, vdc.compared, vdc.differing) == (vdc.root_found, vdc.size, 0)
        assert set(record.seconds) == {"decode", "restore", "compare", "fsck"}
        assert judge.judge(record).verdict == "passed"
    assert list((tmp_path / "scratch").rglob("*.raw")) == []


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda path: damage(path, flip_one), {"points: every chunk decodes to its id"}),
        (lambda path: damage(path, cut), {"points: every chunk decodes to its id"}),
        (Path.unlink, {"points: every chunk decodes to its id"}),
    ],
    ids=["flipped chunk", "truncated pack", "missing pack"],
)
def test_damage_is_found(
    world: World, disk: bytes, tmp_path: Path, harm: Callable[[Path], None], expected: set[str]
) -> None:
    point = world.add({"vda": disk}, {"domain.xml": XML})
    harm(packs(world)[-1])
    record = proven(world, point, tmp_path)
    assert record.verdict == "failed"
    found = misses(record)
    assert found >= expected
    assert "disks: no range is lost" in found
    assert "disks: the root made anew is the one that was read at the source" in found
    assert "points: every disk of the VM is covered" not in found


def test_a_missing_disk_is_found(world: World, disk: bytes, tmp_path: Path) -> None:
    xml = XML.replace(b"</devices>", b"<disk><target dev='vdb'/></disk></devices>")
    record = proven(world, world.add({"vda": disk}, {"domain.xml": xml}), tmp_path)
    assert record.missing == ("vdb",)
    assert misses(record) == {"points: every disk of the VM is covered"}


def test_a_damaged_file_system_is_found(world: World, disk: bytes, tmp_path: Path) -> None:
    point = world.add({"vda": broken(disk), "vdb": partitioned(broken(disk))}, {"domain.xml": XML})
    record = proven(world, point, tmp_path)
    assert misses(record) == {"file_systems: the file system is clean"}
    assert len(record.failed) == 2


def test_swapped_points_are_found(world: World, disk: bytes) -> None:
    """Two sealed records under each other's names: neither is taken for the other."""
    first, second = world.add({"vda": disk}), world.add({"vda": disk[::-1]})
    tier = world.repository.tier
    one, two = (tier.get(layout.point_key(point.id)) for point in (first, second))
    for point, data in ((first, two), (second, one)):
        with pytest.raises(IntegrityError) as raised:
            points.decode(world.repository.keyring, world.repository.id, point.id, data)
        record = unreadable(world.repository, point.id, raised.value.message)
        assert misses(record) == {
            "points: the point's record is signed and its own",
            "points: every chunk decodes to its id",
        }


@pytest.mark.parametrize("place", [1100, 5 << 20], ids=["data", "hole"])
def test_a_map_that_is_not_what_was_read_is_found(world: World, disk: bytes, tmp_path: Path, place: int) -> None:
    """The image is written from the map, so a fault between both is played: the image is changed behind its back."""
    point = world.add({"vda": disk}, {"domain.xml": XML})

    def changing(repository: Repository, *arguments: object) -> object:
        report = restore_point(repository, *arguments)  # type: ignore[arg-type]
        with report.disks[0].path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prove, "restore_point", changing)
        record = proven(world, point, tmp_path)
    found = misses(record)
    assert "disks: the restored disk is what its map says, block by block" in found
    assert ("disks: the root made anew is the one that was read at the source" in found) == (place == 1100)


def test_stale_data_and_policy(world: World, disk: bytes, tmp_path: Path) -> None:
    point = world.add({"vda": disk}, {"domain.xml": XML})
    stale = proven(world, point, tmp_path, stale=("vda: the change tracker missed changes (first at byte 0)",))
    assert misses(stale) == {"points: what the VM did not change is equal to the point"}
    late = proven(world, point, tmp_path, stale=(), rpo=7200.0, rpo_limit=3600.0)
    assert misses(late) == set(), "an old point is no bad point"
    missed = {result.reason for result in judge.results([late]) if result.missed}
    assert missed == {"RPO within policy"}
    future = replace(late, time=point.time - 86400)
    assert misses(future) == {"points: the point is not from the future"}


def test_a_journal_to_replay_is_no_damage(tmp_path: Path, disk: bytes) -> None:
    """As after a power loss: which every point of a running guest that was not frozen is."""
    image = tmp_path / "dirty.raw"
    image.write_bytes(journal_dirty(tmp_path, disk))
    before = image.read_bytes()
    plain = subprocess.run(["/sbin/e2fsck", "-f", "-n", image], check=False, capture_output=True)
    assert plain.returncode, "without its journal it looks damaged"
    (found,) = check_file_systems(image)
    assert (found.type, found.state) == ("ext4", "clean"), found
    assert image.read_bytes() != before


def test_leftovers_of_a_killed_proof_are_removed(world: World, disk: bytes, tmp_path: Path) -> None:
    left = tmp_path / "scratch" / "proofs" / "0123456789abcdef"
    left.mkdir(parents=True)
    (left / "vda.raw").write_bytes(b"left")
    proven(world, world.add({"vda": disk}, {"domain.xml": XML}), tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("seed", range(3))
def test_changing_disks_never_alarm(world: World, tmp_path: Path, seed: int) -> None:
    """Rows that take a part of a chunk, holes, odd sizes: all of it is proven equal."""
    dice = random.Random(seed)
    data = random_disk(dice, dice.randrange(1 << 20, 5 << 20, 512))
    for _ in range(5):
        point = world.add({"vda": data}, {"domain.xml": XML})
        record = proven(world, point, tmp_path)
        assert record.verdict == "passed", record.failed
        data = changed_disk(dice, data, dice.randrange(1 << 20, 5 << 20, 512))


def test_damage_that_a_point_has_no_need_of_is_no_alarm(world: World, disk: bytes, tmp_path: Path) -> None:
    """A full after the damage stores anew what is damaged, and shares the rest of the damaged pack."""
    first = world.add({"vda": disk}, {"domain.xml": XML})
    damage(packs(world)[-1], flip_one)
    assert proven(world, first, tmp_path).verdict == "failed"
    world.last = None
    second = world.add({"vda": disk}, {"domain.xml": XML})
    assert proven(world, second, tmp_path).verdict == "passed"


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_tier_that_does_not_answer_is_no_evidence(
    world: World, disk: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """The first opening of a data pack fails, or each of the first two or three; no point is blamed for it."""
    point = world.add({"vda": disk}, {"domain.xml": XML})
    tier = world.repository.tier
    whole, calls = type(tier).open, iter(range(1000))

    def failing(self: object, key: str) -> object:
        if key.startswith("data/") and next(calls) < fails:
            raise TransientError(f"{key}: no answer")
        return whole(self, key)  # type: ignore[arg-type]  # it is a tier

    monkeypatch.setattr(type(tier), "open", failing)
    try:
        assert proven(world, point, tmp_path).verdict == "passed"
    except TransientError as error:
        assert "no answer" in error.message


def test_a_point_that_is_dropped_meanwhile_is_no_evidence(
    world: World, disk: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped before the proof: gc may take its packs. Dropped while it runs: a lease holds gc off."""
    world.add({"vda": disk}, {"domain.xml": XML})
    gone = world.add({"vda": changed_disk(random.Random(4), disk, len(disk))}, {"domain.xml": XML})
    decode = scrub.verify_point

    def dropping(*args: object, **options: object) -> object:
        held = [found.newest.what for found in leases.found(tier, world.repository.keyring)]
        assert "prove vm" in held
        with suppress(NotFoundError):
            tier.delete(layout.point_key(gone.id))
        return decode(*args, **options)  # type: ignore[arg-type]  # as it was called

    tier = world.repository.tier
    with monkeypatch.context() as patch:
        patch.setattr(scrub, "verify_point", dropping)
        assert proven(world, gone, tmp_path).verdict == "passed"
    with pytest.raises(PermanentError, match="was dropped meanwhile"):
        proven(world, gone, tmp_path)


def test_a_point_without_a_disk_proves_nothing(world: World, tmp_path: Path) -> None:
    record = proven(world, world.add({}, {"domain.xml": b"<domain/>"}), tmp_path)
    assert record.verdict == "failed"
    assert misses(record) == {"points: the point holds a disk"}
