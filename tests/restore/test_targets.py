"""Disk images: every byte where it belongs, nothing elsewhere, and no helper process or file left on any path."""

from __future__ import annotations

import random
import subprocess
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from vmcellar.errors import PermanentError, TransientError
from vmcellar.restore.targets import ImageFormat, Qcow2Target, open_target

SIZES = (64 << 10, (1 << 20) + 512, (10 << 20) + 512, 16 << 20)
SECTOR = 512
FORMATS: tuple[ImageFormat, ...] = ("raw", "qcow2")


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
    target = open_target(image_format, tmp_path / ".x.partial", size)
    threads = [threading.Thread(target=write_all, args=(target, pieces[i::3])) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    target.finish()
    target.abort()
    assert_image(tmp_path / ".x.partial", image_format, bytes(model), tmp_path)


def write_all(target: object, pieces: list[tuple[int, bytes]]) -> None:
    for offset, data in pieces:
        target.write(offset, memoryview(data))  # type: ignore[attr-defined]


@pytest.mark.parametrize("image_format", FORMATS)
def test_abort_leaves_nothing_and_a_leftover_is_replaced(tmp_path: Path, image_format: ImageFormat) -> None:
    partial = tmp_path / ".x.partial"
    partial.write_bytes(b"left by a killed restore" * 9999)
    target = open_target(image_format, partial, 1 << 20)
    target.write(0, memoryview(b"x" * 4096))
    target.abort()
    target.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_sparse_image_stays_small(tmp_path: Path, image_format: ImageFormat) -> None:
    target = open_target(image_format, tmp_path / "x", 1 << 40)
    target.write((1 << 40) - 65536, memoryview(b"y" * 65536))
    target.finish()
    assert (tmp_path / "x").stat().st_blocks * 512 < 4 << 20


def test_qemu_nbd_killed_under_us_is_a_transient_error(tmp_path: Path) -> None:
    target = Qcow2Target(tmp_path / "x", 1 << 20)
    target._server._process.kill()
    target._server._process.wait()
    with pytest.raises(TransientError):
        target.write(0, memoryview(b"z" * 65536))
    target.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image_format", FORMATS)
def test_full_file_system(small_disk: Path, image_format: ImageFormat) -> None:
    target = open_target(image_format, small_disk / ".x.partial", 64 << 20)
    data = random.Random(1).randbytes(1 << 20)
    with pytest.raises(PermanentError, match="no space to restore into"):
        write_all(target, [(offset, data) for offset in range(0, 64 << 20, 1 << 20)])
    target.abort()
    assert list(small_disk.iterdir()) == []
