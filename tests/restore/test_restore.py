"""Whole images against the model of each instant, and what is left when a restore cannot go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.restore.world import ARTIFACTS, World, changed_disk, random_disk
from vmcellar.errors import CancelledError, IntegrityError, PermanentError
from vmcellar.progress import CancelToken
from vmcellar.repository.points import RestorePoint
from vmcellar.restore.plan import make_plan
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import LOST_RANGES, restore_point
from vmcellar.restore.targets import ImageFormat

FORMATS: tuple[ImageFormat, ...] = ("raw", "qcow2")
MIB = 1 << 20


def restored_bytes(path: Path, image_format: str, size: int) -> bytes:
    """The image as the guest would see it, read by QEMU."""
    if image_format == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", path], check=True)
    raw = path.with_suffix(".check")
    subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", path, raw], check=True)
    data = raw.read_bytes()
    raw.unlink()
    assert len(data) == size
    return data


def assert_equal_to_model(world: World, point: RestorePoint, folder: Path, image_format: ImageFormat) -> None:
    report = restore_point(world.repository, point, RestoreTarget(folder, image_format))
    assert report.lost == ()
    for disk in report.disks:
        model = world.models[point.id][disk.target]
        assert restored_bytes(disk.path, image_format, disk.size) == model, (point.id, disk.target)
    names = {f"{target}.{image_format}" for target in world.models[point.id]} | set(ARTIFACTS)
    assert {path.name for path in folder.iterdir()} == names
    for name, data in ARTIFACTS.items():
        assert (folder / name).read_bytes() == data


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_point_is_its_model(world: World, tmp_path: Path, image_format: ImageFormat) -> None:
    rng = random.Random(7)
    disks = {"vda": random_disk(rng, 9 * MIB), "vdb": random_disk(rng, MIB + 512), "sda": bytes(3 * MIB)}
    points = [world.add(disks)]
    for sizes in ((12, 0), (12, 512), (5, 1024), (40, 0)):
        disks["vda"] = changed_disk(rng, disks["vda"], sizes[0] * MIB)
        disks["vdb"] = changed_disk(rng, disks["vdb"], MIB + 512 + sizes[1])
        points.append(world.add(disks))
    del disks["vdb"]
    disks["vdc"] = disks["vda"]
    points.append(world.add(disks))
    for number, point in enumerate(points):
        assert_equal_to_model(world, point, tmp_path / f"out{number}", image_format)


def test_a_disk_beyond_one_window(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcellar.restore.plan.WINDOW", 32 * MIB)
    data = random_disk(random.Random(3), 70 * MIB + 512)
    assert_equal_to_model(world, world.add({"vda": data}), tmp_path / "out", "raw")


def test_chosen_disks_and_plan(world: World, tmp_path: Path) -> None:
    rng = random.Random(9)
    point = world.add({"vda": random_disk(rng, 2 * MIB), "vdb": random_disk(rng, MIB)})
    plan = make_plan(world.repository, point, ["vdb"])
    report = restore_point(world.repository, point, RestoreTarget(tmp_path / "out", "raw", ("vdb",)))
    assert [disk.target for disk in plan.disks] == ["vdb"] == [disk.target for disk in report.disks]
    assert plan.data == report.disks[0].written > 0
    assert plan.packs >= 1
    assert plan.stored > 0
    with pytest.raises(PermanentError, match="no disk vdx"):
        make_plan(world.repository, point, ["vdx"])


def test_a_huge_sparse_disk(world: World, tmp_path: Path) -> None:
    model = random_disk(random.Random(1), MIB)
    point = world.add_grown(world.add({"vda": model}), 1 << 40)
    assert make_plan(world.repository, point).disks[0].size == 1 << 40
    report = restore_point(world.repository, point, RestoreTarget(tmp_path / "out", "raw"))
    image = report.disks[0].path
    assert image.stat().st_size == 1 << 40
    assert image.stat().st_blocks * 512 < 4 * MIB
    with image.open("rb") as file:
        assert file.read(2 * MIB) == model.ljust(2 * MIB, b"\0")


@pytest.mark.parametrize("name", ["vda.raw", "domain.xml", LOST_RANGES])
def test_existing_files_are_refused_and_stay(world: World, tmp_path: Path, name: str) -> None:
    point = world.add({"vda": random_disk(random.Random(2), MIB)})
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(PermanentError, match="exists already"):
        restore_point(world.repository, point, RestoreTarget(tmp_path, "raw"))
    assert (tmp_path / name).read_bytes() == b"precious"


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.chmod(0o600)
    path.write_bytes(data)


def flip(data: bytearray) -> None:
    """A bit in every object, wherever it lies behind the header."""
    for place in range(64, len(data), 61):
        data[place] ^= 1


def flip_one(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


def files(world: World, folder: str) -> list[Path]:
    return sorted(path for path in (world.settings.hot / folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("how", [flip, cut, None], ids=["flipped", "cut", "missing"])
@pytest.mark.parametrize("folder", ["data", "meta"])
def test_damage_is_an_error_with_a_name_and_leaves_nothing(
    world: World, tmp_path: Path, folder: str, how: Callable[[bytearray], None] | None, image_format: ImageFormat
) -> None:
    rng = random.Random(5)
    point = world.add({"vda": rng.randbytes(6 * MIB)}, {"domain.xml": b"<domain/>"})
    for path in files(world, folder):
        path.unlink() if how is None else damage(path, how)
    fresh = type(world.repository).open(world.settings)
    try:
        with pytest.raises((IntegrityError, PermanentError)) as caught:
            restore_point(fresh, point, RestoreTarget(tmp_path / "out", image_format))
    finally:
        fresh.close()
    assert "vm: disk vda at byte" in str(caught.value)
    assert folder in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_best_effort_restores_the_rest_and_lists_what_is_lost(world: World, tmp_path: Path) -> None:
    rng = random.Random(6)
    model = rng.randbytes(12 * MIB)
    point = world.add({"vda": model}, {"domain.xml": b"<domain/>"})
    damage(files(world, "data")[0], flip_one)
    files(world, "data")[1].unlink()
    report = restore_point(world.repository, point, RestoreTarget(tmp_path / "out", "raw", best_effort=True))
    assert 0 < sum(item.length for item in report.lost) < len(model)
    expected = bytearray(model)
    for item in report.lost:
        assert item.target == "vda"
        assert "data/" in item.reason
        expected[item.offset : item.offset + item.length] = bytes(item.length)
    assert (tmp_path / "out" / "vda.raw").read_bytes() == expected
    listed = json.loads((tmp_path / "out" / LOST_RANGES).read_text())
    assert [(item["offset"], item["length"]) for item in listed] == [(item.offset, item.length) for item in report.lost]


def test_a_damaged_map_is_refused_or_lost_as_a_whole(world: World, tmp_path: Path) -> None:
    rng = random.Random(8)
    model = rng.randbytes(3 * MIB)
    point = world.add({"vda": model}, {})
    for path in files(world, "meta"):
        path.unlink()
    fresh = type(world.repository).open(world.settings)
    report = restore_point(fresh, point, RestoreTarget(tmp_path / "out", "raw", best_effort=True))
    fresh.close()
    assert [(item.offset, item.length) for item in report.lost] == [(0, len(model))]
    assert (tmp_path / "out" / "vda.raw").read_bytes() == bytes(len(model))


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_full_disk_is_said_before_and_during(
    world: World, small_disk: Path, image_format: ImageFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = world.add({"vda": random.Random(4).randbytes(12 * MIB)})
    with pytest.raises(PermanentError, match="12 MiB are needed"):
        restore_point(world.repository, point, RestoreTarget(small_disk / "out", image_format))
    monkeypatch.setattr("vmcellar.restore.restore.check_space", lambda *_: None)
    with pytest.raises(PermanentError, match="no space to restore into"):
        restore_point(world.repository, point, RestoreTarget(small_disk / "out", image_format))
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("image_format", FORMATS)
def test_cancel_in_the_middle_leaves_nothing(world: World, tmp_path: Path, image_format: ImageFormat) -> None:
    point = world.add({"vda": random.Random(4).randbytes(12 * MIB)})
    cancel = CancelToken()
    with pytest.raises(CancelledError):
        restore_point(
            world.repository, point, RestoreTarget(tmp_path / "out", image_format), lambda *_: cancel.cancel(), cancel
        )
    assert not (tmp_path / "out").exists()


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.restore.world import Settings
from vmcellar.repository.repository import Repository
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
root = Path(sys.argv[1])
repository = Repository.open(Settings(root / "state", root / "hot"))
point = repository.point(sys.argv[2])
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
restore_point(repository, point, RestoreTarget(root / "out", sys.argv[3]), die)
"""


@pytest.mark.parametrize("image_format", FORMATS)
def test_killed_in_the_middle_then_restored_again(world: World, tmp_path: Path, image_format: ImageFormat) -> None:
    point = world.add({"vda": random_disk(random.Random(4), 12 * MIB)})
    command = [sys.executable, "-c", _KILLED, str(tmp_path), point.id, image_format]
    ended = subprocess.run(command, check=False, cwd=Path(__file__).parents[2], env={**os.environ})
    assert ended.returncode == -signal.SIGKILL
    assert not any(path.suffix in (".raw", ".qcow2", ".xml") for path in (tmp_path / "out").iterdir())
    assert_equal_to_model(world, point, tmp_path / "out", image_format)


def test_two_restores_into_one_folder_at_once(world: World, tmp_path: Path) -> None:
    point = world.add({"vda": random_disk(random.Random(4), MIB)})
    target = RestoreTarget(tmp_path / "out", "raw")
    caught: list[BaseException] = []

    def second(*_: object) -> None:
        try:
            restore_point(world.repository, point, target)
        except PermanentError as error:
            caught.append(error)

    restore_point(world.repository, point, target, second)
    assert caught
    assert "another restore into" in str(caught[0])
    assert restored_bytes(tmp_path / "out" / "vda.raw", "raw", MIB) == world.models[point.id]["vda"]
