"""Overlays whose holes are known: what QEMU reads through them, and what it need not ask the backing for."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmcellar.repository import nodes
from vmcellar.restore.qcow2 import UsedClusters
from vmcellar.restore.qcow2_overlay import METADATA_MOST, overlay_cluster, write_overlay
from vmcellar.restore.targets import check_image

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40


def used_clusters(size: int, runs: list[tuple[int, int]]) -> UsedClusters:
    used = UsedClusters(size, overlay_cluster(size))
    rows = nodes.no_rows(len(runs))
    rows["offset"], rows["length"] = [start for start, _ in runs], [length for _, length in runs]
    rows["chunk"] = np.uint8(1)
    used.add(rows)
    return used


def map_of(image: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["qemu-img", "map", "--output=json", image], capture_output=True, check=True)
    return list(json.loads(done.stdout))


def some_runs(size: int) -> list[tuple[int, int]]:
    rng = random.Random(size)
    starts = sorted(rng.sample(range(0, size, 64 * KIB), min(40, -(-size // (64 * KIB)))))
    return [(start, rng.choice([512, min(64 * KIB, size - start)])) for start in starts]


@pytest.mark.parametrize("size", [64 * KIB, 9 * MIB + 512])
def test_data_comes_from_the_backing_and_holes_do_not(tmp_path: Path, size: int) -> None:
    runs = some_runs(size)
    backing, overlay, plain = tmp_path / "backing.raw", tmp_path / "disk.qcow2", tmp_path / "plain.raw"
    backing.write_bytes(b"\xaa" * size)  # holes are not zero there, to see where what is read comes from
    write_overlay(overlay, str(backing), used_clusters(size, runs))
    check_image(overlay)
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, plain], check=True)
    expected = bytearray(size)
    for start, _ in runs:
        end = min(start + 64 * KIB, size)
        expected[start:end] = b"\xaa" * (end - start)
    assert plain.read_bytes() == expected


def test_the_second_table_of_clusters_is_right(tmp_path: Path) -> None:
    size = 700 * MIB
    runs = some_runs(size)
    backing, overlay = tmp_path / "backing.raw", tmp_path / "disk.qcow2"
    with backing.open("wb") as file:
        file.truncate(size)
    write_overlay(overlay, str(backing), used_clusters(size, runs))
    asked = {cell for each in map_of(overlay) if each["depth"] for cell in range(each["start"], end_of(each), 64 * KIB)}
    assert asked == {start for start, _ in runs}


def end_of(extent: dict[str, Any]) -> int:
    return int(extent["start"] + extent["length"])


def test_a_large_disk_without_data_takes_little_and_is_all_known(tmp_path: Path) -> None:
    size = 16 * TIB
    overlay = tmp_path / "disk.qcow2"
    write_overlay(overlay, "/nowhere", used_clusters(size, []))
    assert overlay_cluster(size) == MIB
    assert overlay.stat().st_blocks * 512 < METADATA_MOST + 4 * MIB
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", overlay], check=True)
    assert [(each["start"], each["length"], each["zero"]) for each in map_of(overlay)] == [(0, size, True)]


def test_clusters_grow_with_the_disk() -> None:
    assert [overlay_cluster(size) for size in (512, 64 * KIB, TIB)] == [64 * KIB] * 3
    assert overlay_cluster(TIB + MIB) == 128 * KIB
    assert overlay_cluster(1024 * TIB) == 2 * MIB
