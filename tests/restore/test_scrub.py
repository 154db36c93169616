"""Scrub finds every damage and names exactly the ranges that a restore loses; the next backup heals what it can."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.restore.test_restore import MIB, cut, damage, files, flip_one
from tests.restore.world import World, changed_disk, random_disk
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import ScrubReport, verify_all, verify_point
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point


def reopened(world: World) -> Repository:
    """The same repository with nothing in memory, as the next command opens it."""
    world.repository.close()
    world.repository = Repository.open(world.settings)
    return world.repository


def two_points(world: World) -> tuple[RestorePoint, RestorePoint]:
    rng = random.Random(11)
    disk = random_disk(rng, 8 * MIB) + rng.randbytes(2 * MIB)
    first = world.add({"vda": disk, "vdb": disk[MIB : 3 * MIB]})
    second = world.add({"vda": changed_disk(rng, disk, 9 * MIB), "vdb": disk[MIB : 3 * MIB]})
    return first, second


def found_ranges(report: ScrubReport, point: RestorePoint) -> set[tuple[str, int, int]]:
    return {(r.disk, r.offset, r.length) for f in report.findings for r in f.ranges if r.point == point.id}


def covered(ranges: set[tuple[str, int, int]]) -> set[tuple[str, int]]:
    """The 512-byte sectors of the ranges."""
    return {(disk, place) for disk, start, length in ranges for place in range(start, start + length, 512)}


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_repository_has_no_findings(world: World, deep: bool) -> None:
    first, _ = two_points(world)
    report = verify_all(world.repository, deep=deep)
    assert report.ok, report.findings
    assert report.points == 2
    assert report.objects > 10
    assert bool(report.bytes) == deep
    assert verify_point(world.repository, first, deep=deep).ok


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_ranges_are_those_that_a_restore_loses(world: World, tmp_path: Path, how: str) -> None:
    points = two_points(world)
    path = max(files(world, "data"), key=lambda path: path.stat().st_size)  # surely holds disk chunks
    if how == "missing":
        path.unlink()
    else:
        damage(path, flip_one if how == "flipped" else cut)
    repository = reopened(world)
    report = verify_all(repository, deep=how == "flipped")
    assert not report.ok
    for point in points:
        restored = restore_point(repository, point, RestoreTarget(tmp_path / point.id, "raw", best_effort=True))
        lost = {(item.target, item.offset, item.length) for item in restored.lost}
        assert covered(found_ranges(report, point)) == covered(lost)
    assert any(found_ranges(report, point) for point in points)


def test_shallow_does_not_read_packs_and_deep_does(world: World) -> None:
    point, _ = two_points(world)
    for path in files(world, "data"):
        damage(path, flip_one)
    assert verify_all(world.repository).ok
    assert not verify_point(world.repository, point, deep=True).ok


def test_a_lost_map_takes_its_whole_range(world: World) -> None:
    first, second = two_points(world)
    assert second.metadata_packs
    name = second.metadata_packs[0]
    (world.settings.hot / "meta" / name[:2] / name).unlink()
    report = verify_all(reopened(world))
    assert ("vda", 0, 9 * MIB) in found_ranges(report, second)
    assert ("vda", 0, 10 * MIB) not in found_ranges(report, first)


def test_damaged_point_and_index_part_are_named(world: World) -> None:
    first, second = two_points(world)
    damage(world.settings.hot / "points" / first.id, flip_one)
    part = files(world, "index")[0]
    damage(part, flip_one)
    report = verify_all(world.repository)
    assert {(f.kind, f.name) for f in report.findings} == {
        ("point", f"points/{first.id}"),
        ("index", f"index/{part.name}"),
    }
    assert report.points == 1
    assert verify_point(world.repository, second).ok


def test_any_flipped_byte_of_any_pack_is_found(world: World) -> None:
    rng = random.Random(13)
    world.add({"vda": random_disk(rng, MIB)})
    for path in [*files(world, "data"), *files(world, "meta")]:
        whole = path.read_bytes()
        size = len(whole)
        edges = {0, 8, 12, 16, 40, 63, 64, size - 1, size - 17, size - 64, size - 65, size - 100}
        for place in sorted(edges | {rng.randrange(size) for _ in range(12)}):
            path.chmod(0o600)
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            assert not verify_all(world.repository, deep=True).ok, (path.name, place)
        path.write_bytes(whole)


def test_what_scrub_found_is_stored_anew_by_the_next_backup_and_heals_old_points(world: World, tmp_path: Path) -> None:
    disk = random.Random(17).randbytes(3 * MIB)
    point = world.add({"vda": disk})
    damage(files(world, "data")[0], flip_one)
    assert len(verify_all(world.repository, deep=True).findings) == 1
    world.last = None  # a full read, as after a new checkpoint lineage
    world.add({"vda": disk})
    repository = reopened(world)
    report = restore_point(repository, point, RestoreTarget(tmp_path / "out", "raw"))
    assert report.disks[0].path.read_bytes() == disk
    again = verify_all(repository, deep=True)
    assert [finding.ranges for finding in again.findings] in ([], [()])
