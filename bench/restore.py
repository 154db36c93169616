"""How fast a point restores, beside `qemu-img convert` of the same disk as the floor: medians, ratios, CPU seconds.

    .venv/bin/python bench/restore.py [--disk 2g|8g] [--directory DIR] [--rounds 5] [--profile]

The disk is the lab's mixed one; it is stored in a repository through the repository's own interface. Side by side
with virtnbdrestore is bench/peers.py's part, which needs a backup of that tool.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import os
import pstats
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lab.bigdisk import DISKS, build
from vmcellar.config.tiers import TierSettings
from vmcellar.memory import keep_freed_memory
from vmcellar.repository import nodes
from vmcellar.repository.layout import CHUNK_MAX, GRID
from vmcellar.repository.points import DiskRecord, RestorePoint, new_point_id
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.restore.targets import ImageFormat


@dataclass(frozen=True, slots=True)
class Passphrase:
    """The key of a repository that lives as long as the bench."""

    def read(self) -> bytes:
        """The passphrase."""
        return b"bench"


@dataclass(frozen=True, slots=True)
class Settings:
    """What Repository asks of a configuration."""

    state: Path
    hot: Path
    key: Passphrase = field(default_factory=Passphrase)

    def hot_tier(self) -> TierSettings:
        """The repository's directory."""
        return TierSettings(storage=str(self.hot))

    def other_tiers(self) -> Mapping[str, TierSettings]:
        """None."""
        return {}


def pieces(raw: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) as a full backup stores them: runs of 64 KiB cells that are not zero, within 1 MiB."""
    with raw.open("rb") as file:
        offset = 0
        while data := file.read(CHUNK_MAX):
            cells = [data[i : i + GRID] for i in range(0, len(data), GRID)]
            used = [cell.count(0) != len(cell) for cell in cells]
            for key, run in itertools.groupby(range(len(cells)), key=used.__getitem__):
                if key:
                    numbers = list(run)
                    yield offset + numbers[0] * GRID, b"".join(cells[i] for i in numbers)
            offset += len(data)


def store(repository: Repository, raw: Path) -> RestorePoint:
    """A committed point of one disk, vda."""
    size = raw.stat().st_size
    writer = repository.pack_writer(repository.tier.staging_dir(), "zstd:1")
    found: dict[int, tuple[int, bytes]] = {}
    seen: set[bytes] = set()
    for offset, data in pieces(raw):
        chunk = repository.keyring.chunk_id(data)
        found[offset] = len(data), chunk
        if chunk not in seen:
            writer.append(chunk, data)
            seen.add(chunk)
    packs = {}
    for sealed in writer.finish():
        repository.tier.adopt(sealed.path, sealed.key)
        packs[sealed.id] = sealed.rows
    rows = nodes.no_rows(len(found))
    rows["offset"] = list(found)
    rows["length"] = [length for length, _ in found.values()]
    rows["chunk"] = np.frombuffer(b"".join(chunk for _, chunk in found.values()), np.uint8).reshape(-1, 32)
    empty = repository.empty_map(size)
    root, added = empty.replace(rows)
    record = DiskRecord("vda", size, root.hex(), empty.level, "qcow2", "bench")
    now = time.time()
    point = RestorePoint(
        new_point_id(now), "bench", "", now, "full", "", None, "crash", True, "", "", (record,), tool="bench"
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return repository.commit(packs, added, {"domain.xml": b"<domain/>"}, point, pool)


def cpu_seconds() -> float:
    """Used by this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of one call."""
    cpu, started = cpu_seconds(), time.monotonic()
    work()
    return time.monotonic() - started, cpu_seconds() - cpu


def restore(repository: Repository, point: RestorePoint, folder: Path, image_format: ImageFormat) -> None:
    """One whole restore into a new folder, which goes again."""
    restore_point(repository, point, RestoreTarget(folder, image_format))


def convert(raw: Path, folder: Path, image_format: str) -> None:
    """The floor: no repository, no decryption, no check; around the page cache on both sides and durable, as
    ours.
    """
    folder.mkdir()
    image = folder / "floor"
    subprocess.run(
        ["qemu-img", "convert", "-T", "none", "-t", "none", "-f", "raw", "-O", image_format, raw, image], check=True
    )
    with image.open("rb") as file:
        os.fsync(file.fileno())


def main() -> int:
    """Parse the arguments, build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", choices=sorted(DISKS), default="2g")
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="vmcellar-bench-", dir=options.directory) as name:
        run(Path(name), options.disk, options.rounds, options.profile)
    return 0


def run(folder: Path, disk: str, rounds: int, profile: bool) -> None:
    """All measurements in `folder`, interleaved so that a noisy moment hits all alike."""
    raw = folder / "source.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", build(DISKS[disk]), raw], check=True)
    repository = Repository.init(Settings(folder / "state", folder / "hot"))
    point = store(repository, raw)
    out = folder / "out"
    cases: dict[str, Callable[[], object]] = {
        "restore qcow2": lambda: restore(repository, point, out, "qcow2"),
        "restore raw": lambda: restore(repository, point, out, "raw"),
        "qemu-img convert qcow2": lambda: convert(raw, out, "qcow2"),
        "qemu-img convert raw": lambda: convert(raw, out, "raw"),
        "verify --deep": lambda: verify_all(repository, deep=True),
    }
    restore(repository, point, out, "qcow2")
    subprocess.run(["qemu-img", "compare", "-q", raw, out / "vda.qcow2"], check=True)
    shutil.rmtree(out)
    if profile:
        show_profile(cases["restore qcow2"])
        shutil.rmtree(out)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, work in cases.items():
            results[name].append(timed(work))
            shutil.rmtree(out, ignore_errors=True)
    stored = sum(path.stat().st_size for path in (folder / "hot" / "data").rglob("*") if path.is_file())
    data = sum(int(rows["length"].sum()) for rows in repository.map(point.disks[0]).rows())
    print(f"disk {disk}: {data / 1e9:.2f} GB of data, {stored / 1e9:.2f} GB stored, {rounds} rounds")
    for name, pairs in results.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:24} {wall:6.2f} s {data / wall / 1e9:6.2f} GB/s {cpu / data * 1e9:6.2f} CPU s/GB")
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    repository.close()


def show_profile(work: Callable[[], object]) -> None:
    """Where the calling thread's time goes; the workers show as waiting."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("cumulative").print_stats(25)


if __name__ == "__main__":
    sys.exit(main())
