"""What every place that a disk can be restored to must do: the whole disk equal, zeroes zero, from many threads."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from lab.ceph import Cluster
from lab.loopdevice import loop_device
from lab.require import requires
from tests.restore.test_onto import NoVolumes
from tests.restore.test_targets import write_all
from tests.restore.world import World, random_disk
from vmcellar.errors import UsageError
from vmcellar.repository.points import RestorePoint
from vmcellar.restore.destinations import find_destination
from vmcellar.restore.differ import DifferentialTarget
from vmcellar.restore.image_server import ImageServer
from vmcellar.restore.in_use import Machines, NoMachines, machines_at
from vmcellar.restore.onto import restore_onto
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.restore.targets import ImageOptions, Preallocation
from vmcellar.restore.volumes import LibvirtVolumes, volume_xml

MIB = 1 << 20
SIZE = 9 * MIB + 1024  # libvirt rounds volumes up to whole KiB


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to restore to. `read` gives the whole disk as a guest would see it."""

    restore: Callable[[World, RestorePoint], None]
    read: Callable[[], bytes]


def as_raw(words: str, image_format: str, folder: Path) -> bytes:
    raw = folder / f"{uuid.uuid4().hex}.raw"
    subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", words, raw], check=True)
    data = raw.read_bytes()
    raw.unlink()
    return data


def new_image(folder: Path, options: ImageOptions) -> Place:
    """A new image in a new folder."""
    out = folder / "out"

    def restore(world: World, point: RestorePoint) -> None:
        target = RestoreTarget(out, options.format, (), False, options.preallocation, options.cluster)
        restore_point(world.repository, point, target)

    return Place(restore, lambda: as_raw(str(out / f"vda.{options.format}"), options.format, folder))


def existing(words: str, folder: Path, machines: Machines, seen: str = "", uri: str = "") -> Place:
    """A disk that `words` name, read through QEMU under the name `seen`."""

    def restore(world: World, point: RestorePoint) -> None:
        volumes = LibvirtVolumes(uri) if uri else NoVolumes()
        disk = find_destination(words, point.disks[0].size, None, volumes)
        restore_onto(world.repository, point, {"vda": disk}, world.settings.state, machines)

    def read() -> bytes:
        image_format = "raw" if seen.startswith("rbd:") else info_of(seen or words)["format"]
        return as_raw(seen or words, image_format, folder)

    return Place(restore, read)


def info_of(path: str) -> dict[str, Any]:
    command = ["qemu-img", "info", "--output=json", path]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


@pytest.fixture(scope="module")
def ceph() -> Iterator[Cluster]:
    requires("ceph")
    cluster = Cluster.start(s3=False)
    try:
        cluster.make_pool("disks")
        cluster.call("rbd", "pool", "init", "disks")
        yield cluster
    finally:
        cluster.stop()


PREALLOCATED: list[Preallocation] = ["off", "metadata", "falloc", "full"]
IMAGES = [
    *(ImageOptions("raw", kind) for kind in PREALLOCATED if kind != "metadata"),
    *(ImageOptions("qcow2", kind) for kind in PREALLOCATED),
    *(ImageOptions("qcow2", "off", cluster) for cluster in (4096, 32 << 10, 2 * MIB)),
    *(ImageOptions("qcow2", "falloc", cluster) for cluster in (4096, 2 * MIB)),
]


def holds_the_point(place: Place, world: World) -> None:
    """The contract: a full disk becomes the point, then an almost empty one, then the first again."""
    full = world.add({"vda": random_disk(random.Random(1), SIZE)})
    place.restore(world, full)
    assert place.read()[:SIZE] == world.models[full.id]["vda"]


def may_be_overwritten(place: Place, world: World) -> None:
    """Of places that are there: the next point replaces all of the last, zeroes too."""
    empty = world.add({"vda": bytes(SIZE - MIB) + random.Random(3).randbytes(MIB)})
    place.restore(world, empty)
    assert place.read()[:SIZE] == world.models[empty.id]["vda"]


@pytest.mark.parametrize("options", IMAGES, ids=lambda o: f"{o.format}-{o.preallocation}-{o.cluster >> 10}K")
def test_new_images(world: World, tmp_path: Path, options: ImageOptions) -> None:
    holds_the_point(new_image(tmp_path, options), world)
    image = next((tmp_path / "out").glob(f"vda.{options.format}"))
    if options.takes_all:
        assert image.stat().st_blocks * 512 >= SIZE
    if options.format == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", image], check=True)
        assert info_of(str(image))["cluster-size"] == options.cluster


def test_a_preallocated_qcow2_has_a_place_for_each_cluster(world: World, tmp_path: Path) -> None:
    point = world.add({"vda": bytes(8 * MIB) + b"x" * 512})
    restore_point(world.repository, point, RestoreTarget(tmp_path / "out", "qcow2", preallocation="metadata"))
    command = ["qemu-img", "map", "--output=json", str(tmp_path / "out" / "vda.qcow2")]
    mapped = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert all("offset" in item for item in mapped)
    assert (tmp_path / "out" / "vda.qcow2").stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_an_existing_file(world: World, tmp_path: Path, image_format: str) -> None:
    requires("qemu-nbd")
    path = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, path, str(SIZE)], check=True)
    place = existing(str(path), tmp_path, NoMachines())
    holds_the_point(place, world)
    may_be_overwritten(place, world)


def test_a_block_device(world: World, tmp_path: Path) -> None:
    requires("qemu-nbd")
    requires("loop devices")
    backing = tmp_path / "backing"
    backing.write_bytes(random.Random(9).randbytes(SIZE))
    with loop_device(backing) as device:
        place = existing(str(device), tmp_path, NoMachines())
        holds_the_point(place, world)
        may_be_overwritten(place, world)


def test_an_rbd_image(world: World, tmp_path: Path, ceph: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEPH_CONF", str(ceph.conf))
    place = existing("rbd:disks/web1", tmp_path, NoMachines(), seen=f"rbd:disks/web1:conf={ceph.conf}")
    holds_the_point(place, world)
    may_be_overwritten(place, world)


@pytest.mark.libvirt
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_volume(world: World, vm_tmp: Path, tmp_path: Path, libvirt_daemons: str, image_format: str) -> None:
    name = f"lab-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    connection = libvirt.open(libvirt_daemons)
    xml = f"<pool type='dir'><name>{name}</name><target><path>{vm_tmp}</path></target></pool>"
    pool = connection.storagePoolCreateXML(xml)
    try:
        if image_format == "raw":
            pool.createXML(volume_xml("web1", SIZE, "dir", "raw"))
        machines = machines_at(libvirt_daemons)
        place = existing(f"vol:{name}/web1", tmp_path, machines, str(vm_tmp / "web1"), libvirt_daemons)
        holds_the_point(place, world)
        assert info_of(str(vm_tmp / "web1"))["format"] == image_format
        may_be_overwritten(place, world)
    finally:
        pool.destroy()
        connection.close()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"format": "raw", "preallocation": "metadata"}, "no metadata"), ({"cluster": 3000}, "power of two")],
)
def test_what_does_not_go_together(wrong: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ImageOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("words", ["rbd:pool", "rbd:/image", "vol:pool/", "vol:"])
def test_words_that_name_no_disk(words: str) -> None:
    with pytest.raises(UsageError, match="does not name a disk"):
        find_destination(words, SIZE, None, NoVolumes())


def test_many_threads_write_one_existing_disk(tmp_path: Path) -> None:
    """The writer of a differential restore is a DiskTarget like those of new images (`test_targets`)."""
    requires("qemu-nbd")
    path = tmp_path / "disk"
    path.write_bytes(random.Random(4).randbytes(SIZE))
    model = random_disk(random.Random(5), SIZE)
    with ImageServer("disk", find_destination(str(path), SIZE, "raw", NoVolumes()).options()) as image:
        target = DifferentialTarget(image)
        target.look_at(0, SIZE)
        pieces = [(start, model[start : start + 70_000]) for start in range(0, SIZE, 70_000)]
        threads = [threading.Thread(target=write_all, args=(target, pieces[i::3])) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        target.finish()
    assert path.read_bytes() == model
