"""How fast packs are made and checked: GB/s of plain bytes and CPU seconds per GB, medians of several rounds.

    .venv/bin/python bench/repository.py [--directory DIR] [--gib 1] [--rounds 3] [--threads 2]

Three kinds of data in 1 MiB chunks: random (does not shrink), the libraries of this system, and zero-heavy pages.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vmcellar.memory import keep_freed_memory
from vmcellar.repository.codec import Compression
from vmcellar.repository.packs import PackWriter, SealedPack, verify_pack
from vmcellar.repository.repository import make, unlock
from vmcellar.tiers.local import LocalTier

CHUNK = 1 << 20


def random_chunks() -> list[bytes]:
    """64 chunks that do not compress."""
    return [os.urandom(CHUNK) for _ in range(64)]


def library_chunks() -> list[bytes]:
    """Up to 64 chunks of shared libraries, like a guest's /usr."""

    def pieces() -> Iterator[bytes]:
        for path in sorted(Path("/usr/lib").rglob("*.so*")):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                yield from (data[i : i + CHUNK] for i in range(0, len(data) - CHUNK + 1, CHUNK))

    found = [piece for piece, _ in zip(pieces(), range(64), strict=False)]
    return found or random_chunks()


def sparse_chunks() -> list[bytes]:
    """64 chunks of which seven bytes in eight are zero."""
    return [(os.urandom(4096) + bytes(28672)) * 32 for _ in range(64)]


class Bench:
    """One kind of data, one folder, one pool."""

    def __init__(self, folder: Path, chunks: list[bytes], count: int, threads: int, compression: str) -> None:
        self.tier = LocalTier(folder)
        if not self.tier.exists("config"):
            make(self.tier, b"bench")
        self.keyring, _ = unlock(self.tier, b"bench")
        self.chunks = [(self.keyring.chunk_id(chunk), chunk) for chunk in chunks]
        self.count = count
        self.threads = threads
        self.compression = Compression.parse(compression)
        self.packs: list[SealedPack] = []

    def write(self) -> None:
        """Compress, seal, write and place `count` chunks."""
        writer = PackWriter(self.keyring, self.tier.staging_dir(), compression=self.compression)
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(lambda i: writer.append(*self.chunks[i % len(self.chunks)]), range(self.count)))
        self.packs = writer.finish()
        for pack in self.packs:
            self.tier.adopt(pack.path, pack.key)

    def verify(self) -> None:
        """Read back from the device and check every chunk."""
        with ThreadPoolExecutor(self.threads) as pool:
            for pack in self.packs:
                verify_pack(self.tier, pack.key, self.keyring, pool)

    def clean(self) -> None:
        """Remove the packs of the last round."""
        for pack in self.packs:
            self.tier.delete(pack.key)


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process)."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def report(name: str, figures: list[tuple[float, float]], gigabytes: float) -> None:
    """One line: the medians."""
    wall, cpu = (statistics.median(column) for column in zip(*figures, strict=True))
    sys.stdout.write(f"{name:<28} {gigabytes / wall:6.2f} GB/s {cpu / gigabytes:6.2f} CPU s/GB\n")


def main() -> None:
    """Run all kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=None, help="on the device to measure; default a new folder")
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compression", default="zstd:auto")
    options = parser.parse_args()
    keep_freed_memory()
    count = max(1, int(options.gib * 1024))
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        for name, make in (("random", random_chunks), ("libraries", library_chunks), ("sparse", sparse_chunks)):
            bench = Bench(Path(folder), make(), count, options.threads, options.compression)
            writes, checks = [], []
            for _ in range(options.rounds):
                writes.append(measured(bench.write))
                checks.append(measured(bench.verify))
                stored = sum(pack.size for pack in bench.packs)
                bench.clean()
            gigabytes = count * CHUNK / 1e9
            report(f"{name}: seal and write", writes, gigabytes)
            report(f"{name}: verify", checks, gigabytes)
            sys.stdout.write(f"{name}: stored {stored / count / CHUNK:.2f} of plain\n")


if __name__ == "__main__":
    main()
