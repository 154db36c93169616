"""Disk images: every byte where it belongs, nothing elsewhere, and no helper process or file left on any path."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcellar.errors import IntegrityError, PermanentError, TransientError
from vmcellar.repository import nodes
from vmcellar.restore.qcow2 import CLUSTER, Qcow2Layout, UsedClusters
from vmcellar.restore.targets import DiskTarget, ImageFormat, ImageOptions, Qcow2Target, RawTarget, open_target

SIZES = (64 << 10, (1 << 20) + 512, (10 << 20) + 512, 16 << 20)
SECTOR = 512
FORMATS: tuple[ImageFormat, ...] = ("raw", "qcow2")


def used(size: int, extents: list[tuple[int, int]]) -> UsedClusters:
    """What a plan announces: the clusters of these (offset, length)."""
    found = UsedClusters(size)
    rows = nodes.no_rows(len(extents))
    for row, extent in zip(rows, sorted(extents), strict=True):
        row["offset"], row["length"] = extent
    found.add(rows)
    return found


def assert_image(path: Path, image_format: str, model: bytes, folder: Path) -> None:
    reference = folder / "reference.raw"
    reference.write_bytes(model)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", image_format, reference, path], check=True)
    if image_format == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", path], check=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_format", FORMATS)
def test_scattered_writes_from_many_threads(tmp_path: Path, image_format: ImageFormat, size: int) -> None:
    rng = random.Random(size)
    model = bytearray(size)
    pieces: list[tuple[int, bytes]] = []
    cuts = sorted({0, size, *(rng.randrange(0, size, SECTOR) for _ in range(40))})
    for start, end in pairwise(cuts):
        if rng.random() < 0.6:
            data = rng.randbytes(end - start)
            model[start:end] = data
            pieces.append((start, data))
    rng.shuffle(pieces)
    announced = used(size, [(start, len(data)) for start, data in pieces])
    target = open_target(ImageOptions(image_format), tmp_path / ".x.partial", announced)
    threads = [threading.Thread(target=write_all, args=(target, pieces[i::3])) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    target.finish()
    target.abort()
    assert_image(tmp_path / ".x.partial", image_format, bytes(model), tmp_path)


def write_all(target: DiskTarget, pieces: list[tuple[int, bytes]]) -> None:
    for offset, data in pieces:
        target.write(offset, memoryview(data))


@pytest.mark.parametrize("image_format", FORMATS)
def test_abort_leaves_nothing_and_a_leftover_is_replaced(tmp_path: Path, image_format: ImageFormat) -> None:
    partial = tmp_path / ".x.partial"
    partial.write_bytes(b"left by a killed restore" * 9999)
    target = open_target(ImageOptions(image_format), partial, used(1 << 20, [(0, 4096)]))
    target.write(0, memoryview(b"x" * 4096))
    target.abort()
    target.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_sparse_image_stays_small(tmp_path: Path, image_format: ImageFormat) -> None:
    target = open_target(ImageOptions(image_format), tmp_path / "x", used(1 << 40, [((1 << 40) - 65536, 65536)]))
    target.write((1 << 40) - 65536, memoryview(b"y" * 65536))
    target.finish()
    assert (tmp_path / "x").stat().st_blocks * 512 < 4 << 20


@pytest.mark.parametrize("image_format", FORMATS)
def test_full_file_system(small_disk: Path, image_format: ImageFormat) -> None:
    """Found before a byte is fetched, as the space for all data is taken first."""
    with pytest.raises(PermanentError, match="no space to restore into"):
        open_target(ImageOptions(image_format), small_disk / ".x.partial", used(64 << 20, [(0, 64 << 20)]))
    assert list(small_disk.iterdir()) == []


def test_a_file_system_that_fills_up_meanwhile(small_disk: Path) -> None:
    target = Qcow2Target(small_disk / ".x.partial", used(1 << 20, [(0, 1 << 20)]))
    data = random.Random(1).randbytes(1 << 20)
    with pytest.raises(PermanentError, match="no space to restore into"):
        write_all(target._file, [(offset, data) for offset in range(0, 64 << 20, 1 << 20)])
    target.abort()
    assert list(small_disk.iterdir()) == []


def test_what_was_not_announced_is_refused(tmp_path: Path) -> None:
    target = Qcow2Target(tmp_path / "x", used(1 << 20, [(0, 65536)]))
    with pytest.raises(TransientError, match="byte 65536"):
        target.write(65536, memoryview(b"z" * 512))
    target.abort()


def test_qemu_is_the_judge_of_every_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours in the metadata: no image is left under any name."""
    target = Qcow2Target(tmp_path / "x", used(1 << 20, [(0, 65536)]))
    monkeypatch.setattr(Qcow2Layout, "_l2_table", lambda *_: b"\x80" + b"\1" * (CLUSTER - 1))
    target.write(0, memoryview(b"z" * 512))
    with pytest.raises(IntegrityError, match="qemu-img check"):
        target.finish()
    target.abort()
    assert list(tmp_path.iterdir()) == []


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A size of up to 4 TiB and extents on it: dense, sparse, near the borders of tables, at the end."""
    size = draw(st.sampled_from([1, 2, 64, 1 << 10, (1 << 20) + 1, (1 << 20) - 1, 1 << 22, 1 << 33])) * SECTOR
    starts = draw(st.lists(st.integers(0, size // SECTOR - 1), max_size=12, unique=True).map(sorted))
    ends = [*starts[1:], size // SECTOR] if starts else []
    room = zip(starts, ends, strict=True)
    most = draw(st.sampled_from([1, 128, 2048, 1 << 16]))
    return size, [(start * SECTOR, min(end - start, draw(st.integers(1, most))) * SECTOR) for start, end in room]


@settings(max_examples=40)
@given(disks())
def test_qemu_finds_every_cluster_where_the_layout_says(
    tmp_path_factory: pytest.TempPathFactory, disk: tuple[int, list[tuple[int, int]]]
) -> None:
    size, extents = disk
    announced = used(size, extents)
    target = Qcow2Target(tmp_path_factory.mktemp("layout") / "x", announced)
    target.finish()
    command = ["qemu-img", "map", "--output=json", "-f", "qcow2", str(target.partial)]
    mapped = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert sum(item["length"] for item in mapped) == size
    found = {
        item["start"] + step: item["offset"] + step
        for item in mapped
        if "offset" in item
        for step in range(0, item["length"], CLUSTER)
    }
    layout = Qcow2Layout(announced)
    clusters = {
        cluster * CLUSTER
        for start, length in extents
        for cluster in range(start // CLUSTER, -(-(start + length) // CLUSTER))
    }
    assert found == {cluster: layout.place(cluster) for cluster in clusters}
    target.partial.unlink()


@pytest.mark.parametrize("data", [*range(32758, 32766), 2 * 32768 - 13, 100_000])
def test_images_around_the_borders_of_refcount_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: int
) -> None:
    """Of the metadata: no space is taken for the data, which would be 6 GB."""
    monkeypatch.setattr(RawTarget, "reserve", lambda *_: None)
    announced = used(8 << 30, [(start * CLUSTER, min(8192, data - start) * CLUSTER) for start in range(0, data, 8192)])
    target = Qcow2Target(tmp_path / "x", announced)
    target.finish()
    info = subprocess.run(["qemu-img", "check", "--output=json", target.partial], check=True, capture_output=True)
    assert json.loads(info.stdout)["allocated-clusters"] == data


@pytest.mark.parametrize("size", [*SIZES, 1200 << 20])
def test_runs_are_the_used_clusters_joined(size: int) -> None:
    rng = random.Random(size)
    cells = sorted(rng.sample(range(-(-size // CLUSTER)), min(30, -(-size // CLUSTER))))
    found = [
        cell
        for offset, length in used(
            size, [(cell * CLUSTER, min(SECTOR, size - cell * CLUSTER)) for cell in cells]
        ).runs()
        for cell in range(offset // CLUSTER, -(-(offset + length) // CLUSTER))
        if offset + length <= size
    ]
    assert found == cells


@pytest.mark.parametrize("image_format", FORMATS)
def test_space_is_taken_for_data_alone(tmp_path: Path, image_format: ImageFormat) -> None:
    size = 64 << 20
    target = open_target(
        ImageOptions(image_format), tmp_path / "disk", used(size, [(0, CLUSTER), (size // 2, CLUSTER)])
    )
    target.write(0, memoryview(b"x" * CLUSTER))
    target.finish()
    taken = (tmp_path / "disk").stat().st_blocks * 512
    assert 2 * CLUSTER <= taken <= 10 * CLUSTER
    assert_image(tmp_path / "disk", image_format, (b"x" * CLUSTER).ljust(size, b"\0"), tmp_path)
