"""A restore onto a disk that is there: whole-disk equality, few writes, and a kill that the same command mends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.disks import DiskSpec
from lab.loopdevice import loop_device
from lab.require import requires
from tests.restore.served_world import config_of
from tests.restore.test_restore import restored_bytes
from tests.restore.world import World, changed_disk, random_disk
from vmcellar.errors import CancelledError, IntegrityError, PermanentError, TransientError, UsageError
from vmcellar.progress import CancelToken
from vmcellar.repository.points import RestorePoint
from vmcellar.restore.destinations import Destination, find_destination
from vmcellar.restore.differ import GRAIN, DifferentialTarget
from vmcellar.restore.image_server import ImageServer
from vmcellar.restore.in_use import NoMachines, machines_at
from vmcellar.restore.onto import OntoReport, restore_onto
from vmcellar.restore.targets import ImageFormat
from vmcellar.restore.unfinished import unfinished

if TYPE_CHECKING:
    from tests.conftest import GuestFactory

MIB = 1 << 20
FORMATS: tuple[ImageFormat, ...] = ("raw", "qcow2")


@pytest.fixture(autouse=True)
def _programs() -> None:
    requires("qemu-nbd")


class NoVolumes:
    """A host without storage pools."""

    def find(self, pool: str, name: str, size: int, image_format: ImageFormat | None) -> str:
        raise AssertionError((pool, name, size, image_format))


def disk_at(words: Path | str, size: int = 0) -> Destination:
    """What the words name on the command line."""
    return find_destination(str(words), size, None, NoVolumes())


def image_of(folder: Path, data: bytes, image_format: ImageFormat, name: str = "disk") -> Path:
    """An image that holds `data`, sparse where that is zero."""
    folder.mkdir(exist_ok=True)
    raw, path = folder / f"{name}.source", folder / f"{name}.{image_format}"
    raw.write_bytes(data)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", image_format, raw, path], check=True)
    raw.unlink()
    return path


def onto(world: World, point: RestorePoint, **paths: Path) -> OntoReport:
    pairs = {target: disk_at(path) for target, path in paths.items()}
    return restore_onto(world.repository, point, pairs, world.settings.state, NoMachines())


def grains_that_differ(one: bytes, other: bytes) -> int:
    return sum(one[at : at + GRAIN] != other[at : at + GRAIN] for at in range(0, len(one), GRAIN))


@pytest.mark.parametrize("image_format", FORMATS)
def test_any_disk_becomes_any_point(world: World, tmp_path: Path, image_format: ImageFormat) -> None:
    rng = random.Random(11)
    size = 9 * MIB + 512
    disk = random_disk(rng, size)
    points = [world.add({"vda": disk})]
    for _ in range(3):
        disk = changed_disk(rng, disk, size)
        points.append(world.add({"vda": disk}))
    models = [world.models[point.id]["vda"] for point in points]
    path = image_of(tmp_path / "image", models[0], image_format)
    now = models[0]
    for number in (3, 1, 0, 2, 2):
        report = onto(world, points[number], vda=path).disks[0]
        differ = grains_that_differ(now, models[number])
        now = models[number]
        assert restored_bytes(path, image_format, size) == now
        assert report.written + report.zeroed <= differ * GRAIN
        assert (report.written + report.zeroed > 0) == (differ > 0)
    assert unfinished(world.settings.state) == []
    assert not list((world.settings.state / "unfinished").iterdir())


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_strange_and_an_empty_disk(world: World, tmp_path: Path, image_format: ImageFormat) -> None:
    rng = random.Random(12)
    size = 5 * MIB
    point = world.add({"vda": random_disk(rng, size), "vdb": bytes(size)})
    strange = image_of(tmp_path, rng.randbytes(size), image_format, "strange")
    full = image_of(tmp_path, rng.randbytes(size), image_format, "full")
    onto(world, point, vda=strange, vdb=full)
    assert restored_bytes(strange, image_format, size) == world.models[point.id]["vda"]
    assert restored_bytes(full, image_format, size) == bytes(size)
    empty = image_of(tmp_path, bytes(size), image_format, "empty")
    report = onto(world, point, vda=empty)
    assert restored_bytes(empty, image_format, size) == world.models[point.id]["vda"]
    assert report.disks[0].zeroed == 0


def test_zeroes_are_punched_and_equal_disks_cost_nothing_of_the_repository(world: World, tmp_path: Path) -> None:
    size = 8 * MIB
    rng = random.Random(13)
    world.add({"vda": rng.randbytes(size)})
    point = world.add({"vda": rng.randbytes(MIB) + bytes(size - MIB)})
    path = image_of(tmp_path, rng.randbytes(size), "raw")
    first = onto(world, point, vda=path)
    assert path.stat().st_blocks * 512 <= MIB + GRAIN
    assert first.disks[0].written == MIB
    assert first.disks[0].zeroed == size - MIB
    again = onto(world, point, vda=path)
    assert (again.read, again.disks[0].written, again.disks[0].zeroed) == (0, 0, 0)


def test_a_disk_of_many_windows(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcellar.restore.plan.WINDOW", 32 * MIB)
    data = bytes(40 * MIB) + random_disk(random.Random(3), 70 * MIB + 512)
    point = world.add({"vda": data})
    path = image_of(tmp_path, random_disk(random.Random(4), len(data)), "qcow2")
    onto(world, point, vda=path)
    assert restored_bytes(path, "qcow2", len(data)) == data


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_wrong_size_is_refused(world: World, tmp_path: Path, image_format: ImageFormat) -> None:
    point = world.add({"vda": random_disk(random.Random(2), MIB)})
    for size in (MIB - 512, MIB + 512):
        data = random.Random(1).randbytes(size)
        path = image_of(tmp_path / str(size), data, image_format)
        with pytest.raises(PermanentError, match="does not fit"):
            onto(world, point, vda=path)
        assert restored_bytes(path, image_format, size) == data
    assert not list((world.settings.state / "unfinished").iterdir())


def test_what_is_not_there_and_what_is_no_disk(world: World, tmp_path: Path) -> None:
    point = world.add({"vda": random_disk(random.Random(2), MIB), "vdb": bytes(MIB)})
    with pytest.raises(PermanentError, match="No such file"):
        onto(world, point, vda=tmp_path / "missing")
    with pytest.raises(UsageError, match="neither a file nor"):
        onto(world, point, vda=tmp_path)
    path = image_of(tmp_path, bytes(MIB), "raw")
    other = tmp_path / "other-name"
    other.symlink_to(path)
    with pytest.raises(UsageError, match="for vda and for vdb"):
        onto(world, point, vda=path, vdb=other)


@contextmanager
def held_by_qemu(path: Path, image_format: str) -> Iterator[None]:
    """Open it as a running VM would: with a device that shares its writes with nobody."""
    command = ["qemu-io", "-f", image_format, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("read 0 512\n")
        process.stdin.flush()
        assert "read 512/512" in process.stdout.readline()
        yield
        process.stdin.close()


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_that_qemu_has_open_is_refused(world: World, tmp_path: Path, image_format: ImageFormat) -> None:
    point, path = world.add({"vda": b"x" * MIB}), image_of(tmp_path, bytes(MIB), image_format)
    with held_by_qemu(path, image_format), pytest.raises(PermanentError, match="has it open"):
        onto(world, point, vda=path)
    assert restored_bytes(path, image_format, MIB) == bytes(MIB)
    onto(world, point, vda=path)


def test_two_at_once_are_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcellar.restore.unfinished.WAIT_SECONDS", 0.0)
    point = world.add({"vda": random_disk(random.Random(2), MIB)})
    path = image_of(tmp_path, bytes(MIB), "raw")
    found = disk_at(path)

    class Nested:
        """Begins a second restore while the first is about to write."""

        def users(self, disk: Destination) -> list[str]:
            with pytest.raises(PermanentError, match="another restore"):
                restore_onto(world.repository, point, {"vda": disk}, world.settings.state, NoMachines())
            return []

    restore_onto(world.repository, point, {"vda": found}, world.settings.state, Nested())
    assert path.read_bytes() == world.models[point.id]["vda"]


def test_damage_is_found_before_the_disk_is_touched(world: World, tmp_path: Path) -> None:
    point = world.add({"vda": random.Random(5).randbytes(MIB)}, {})
    old = random.Random(6).randbytes(MIB)
    path = image_of(tmp_path, old, "raw")
    for pack in (world.settings.hot / "data").rglob("*"):
        if pack.is_file():
            pack.unlink()
    with pytest.raises((IntegrityError, PermanentError)) as caught:
        onto(world, point, vda=path)
    assert "vda" in caught.value.message
    assert path.read_bytes() == old
    assert unfinished(world.settings.state) == []


def test_an_error_in_the_middle_says_how_to_finish(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = world.add({"vda": random.Random(5).randbytes(4 * MIB)})
    path = image_of(tmp_path, random.Random(6).randbytes(4 * MIB), "raw")
    real, left = ImageServer.write, [2]

    def failing(self: ImageServer, offset: int, data: memoryview | bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise TransientError(f"{self.name}: writing at byte {offset}: Input/output error", hint="check the storage")
        real(self, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(ImageServer, "write", failing)
        with pytest.raises(TransientError) as caught:
            onto(world, point, vda=path)
    assert "half old and half new" in caught.value.hint
    (entry,) = unfinished(world.settings.state)
    assert (entry.disk, entry.point, entry.target) == (str(path), point.id, "vda")
    assert onto(world, point, vda=path).disks[0].went_on
    assert path.read_bytes() == world.models[point.id]["vda"]
    assert unfinished(world.settings.state) == []


def test_a_stop_leaves_the_mark(world: World, tmp_path: Path) -> None:
    point = world.add({"vda": random.Random(5).randbytes(4 * MIB)})
    path = image_of(tmp_path, bytes(4 * MIB), "raw")
    cancel = CancelToken()

    def stop(_stage: str, count: int) -> None:
        if count:
            cancel.cancel()

    pairs = {"vda": disk_at(path)}
    with pytest.raises(CancelledError):
        restore_onto(world.repository, point, pairs, world.settings.state, NoMachines(), stop, cancel)
    assert len(unfinished(world.settings.state)) == 1


def test_disks_of_two_instants_are_named_until_all_are_whole(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = world.add({target: random.Random(target).randbytes(2 * MIB) for target in ("vda", "vdb")})
    paths = {target: image_of(tmp_path, bytes(2 * MIB), "raw", target) for target in ("vda", "vdb")}
    look_at = DifferentialTarget.look_at

    def failing(self: DifferentialTarget, start: int, end: int) -> None:
        if paths["vda"].read_bytes() == world.models[point.id]["vda"]:
            raise TransientError("no answer")
        look_at(self, start, end)

    monkeypatch.setattr(DifferentialTarget, "look_at", failing)
    with pytest.raises(TransientError) as caught:
        onto(world, point, **paths)
    monkeypatch.undo()
    named = {entry.disk for entry in unfinished(world.settings.state) if entry.disk in caught.value.hint}
    assert named == {str(path) for path in paths.values()}
    assert [disk.went_on for disk in onto(world, point, **paths).disks] == [True, True]
    assert {target: path.read_bytes() for target, path in paths.items()} == world.models[point.id]
    assert unfinished(world.settings.state) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from vmcellar.config import load_config
from vmcellar.repository.repository import Repository
from vmcellar.restore.destinations import find_destination
from vmcellar.restore.image_server import ImageServer
from vmcellar.restore.in_use import NoMachines
from vmcellar.restore.onto import restore_onto

config, point, disk, writes = load_config(Path(sys.argv[1])), sys.argv[2], sys.argv[3], int(sys.argv[4])
real, left = ImageServer.write, [writes]
def write(self, offset, data):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, offset, data)
ImageServer.write = write
repository = Repository.open(config)
found = find_destination(disk, 0, None, None)
restore_onto(repository, repository.point(point), {"vda": found}, config.state, NoMachines())
"""


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("writes", [0, 3])
def test_kill_and_the_same_command_again(world: World, tmp_path: Path, image_format: ImageFormat, writes: int) -> None:
    rng = random.Random(8)
    point = world.add({"vda": rng.randbytes(6 * MIB)})
    path = image_of(tmp_path, rng.randbytes(6 * MIB), image_format)
    arguments = [sys.executable, "-c", KILLED, str(config_of(world)), point.id, str(path), str(writes)]
    done = subprocess.run(arguments, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -signal.SIGKILL
    assert [entry.disk for entry in unfinished(world.settings.state)] == [str(path)]
    report = onto(world, point, vda=path)
    assert report.disks[0].went_on
    assert restored_bytes(path, image_format, 6 * MIB) == world.models[point.id]["vda"]
    assert unfinished(world.settings.state) == []


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A block device of 8 MiB with random bytes."""
    requires("loop devices")
    backing = tmp_path / "backing"
    backing.write_bytes(random.Random(99).randbytes(8 * MIB))
    with loop_device(backing) as device:
        yield device


def test_a_block_device_may_be_larger_and_keeps_what_is_behind(world: World, tmp_path: Path, loop: Path) -> None:
    point = world.add({"vda": random_disk(random.Random(2), 6 * MIB)})
    before = (tmp_path / "backing").read_bytes()
    report = onto(world, point, vda=loop)
    assert loop.read_bytes() == world.models[point.id]["vda"] + before[6 * MIB :]
    assert report.disks[0].beyond == 2 * MIB
    bigger = world.add({"vda": bytes(9 * MIB)})
    with pytest.raises(PermanentError, match="does not fit"):
        onto(world, bigger, vda=loop)


def test_a_mounted_block_device_is_refused(world: World, tmp_path: Path, loop: Path) -> None:
    requires("mkfs.ext4")
    point = world.add({"vda": random_disk(random.Random(2), 8 * MIB)})
    subprocess.run(["mkfs.ext4", "-q", "-F", loop], check=True)
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mount", loop, tmp_path / "mnt"], check=True)
    try:
        with pytest.raises(PermanentError, match=r"in use: .* is mounted at .*/mnt"):
            onto(world, point, vda=loop)
    finally:
        subprocess.run(["umount", tmp_path / "mnt"], check=True)
    onto(world, point, vda=loop)
    assert loop.read_bytes() == world.models[point.id]["vda"]


def test_a_file_under_a_loop_device_is_refused(world: World, tmp_path: Path, loop: Path) -> None:
    point = world.add({"vda": random_disk(random.Random(2), 8 * MIB)})
    before = (tmp_path / "backing").read_bytes()
    with pytest.raises(PermanentError, match=f"{loop} is set up on it"):
        onto(world, point, vda=tmp_path / "backing")
    assert (tmp_path / "backing").read_bytes() == before


@pytest.mark.libvirt
def test_what_a_vm_uses_is_refused(world: World, make_guest: GuestFactory, vm_tmp: Path, libvirt_daemons: str) -> None:
    guest = make_guest((DiskSpec("vda", 4 * MIB),))
    image = guest.paths["vda"]
    point = world.add({"vda": random_disk(random.Random(2), 4 * MIB)})
    pairs = {"vda": disk_at(image)}

    def restore() -> None:
        restore_onto(world.repository, point, pairs, world.settings.state, machines_at(libvirt_daemons))

    guest.start(paused=True)
    with pytest.raises(PermanentError, match=f"VM {guest.name} is running on it"):
        restore()
    guest.domain.destroy()
    base = vm_tmp / "base.qcow2"
    image.rename(base)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image], check=True)
    onto_base = {"vda": disk_at(base)}
    with pytest.raises(PermanentError, match=f"an image of VM {guest.name} lies on top"):
        restore_onto(world.repository, point, onto_base, world.settings.state, machines_at(libvirt_daemons))
    restore()
    assert restored_bytes(image, "qcow2", 4 * MIB) == world.models[point.id]["vda"]
