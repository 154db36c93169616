"""What a large repository costs: listing, opening, planning a prune, one more incremental, gc.

    ./run bench scale [--points 10000] [--directory DIR]

Writes the metadata of 1 PiB (logical) in 10,000 points: VMs of 100 points each, a disk of 105 GiB with 16 GiB in use,
a quarter of that shared with other VMs of the same template, then 99 incrementals of 200 runs in 24 leaves. Map nodes,
metadata packs, index parts and points come from the real writers, as many objects as real backups leave. Data packs are
holes of the right size: nothing that is measured here reads one. Building skips fsync and the checks of a commit.

Each figure is that of a process of its own, with its peak memory; "cold" is without this host's caches, not without the
kernel's. Building stops at a tenth, at three tenths and at all of the points to show how gc grows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.scale_build import DISK, NOW, PASSPHRASE, PER_VM, Builder
from vmcellar.config.jobs import KeepByAge
from vmcellar.repository import layout, points
from vmcellar.repository.layout import GRID, ROW
from vmcellar.repository.points import DiskRecord, RestorePoint
from vmcellar.repository.repository import Repository, unlock
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.local_reader import LocalReader
from vmcellar.upkeep import gc, prune
from vmcellar.upkeep.fresh import with_fresh_index

if TYPE_CHECKING:
    from vmcellar.tiers.base import TierReader


class CountingReader(LocalReader):
    """Counts bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See TierReader.read_into."""
        COUNTS["reads"] += 1
        COUNTS["bytes read"] += len(buffer)
        super().read_into(offset, buffer)


COUNTS = {"objects opened": 0, "reads": 0, "bytes read": 0}


class CountingTier(LocalTier):
    """Counts what is read."""

    def get(self, key: str) -> bytes:
        """See Tier.get."""
        data = super().get(key)
        COUNTS["objects opened"] += 1
        COUNTS["reads"] += 1
        COUNTS["bytes read"] += len(data)
        return data

    def open(self, key: str) -> TierReader:
        """See Tier.open."""
        COUNTS["objects opened"] += 1
        return CountingReader(self, key, self._file(key))


# measuring: each of these runs in a process of its own


def opened(folder: Path) -> Repository:
    """The repository, as a command opens it, with what is read counted."""
    tier = CountingTier(folder / "hot")
    keyring, repository_id = unlock(tier, PASSPHRASE)
    return Repository(tier, keyring, repository_id, folder / "cache")


def listing(repository: Repository) -> str:
    """All points."""
    return f"{len(repository.points())} points"


def latest(repository: Repository) -> str:
    """One point by the name of its VM, and the first extents of its map."""
    repository.index.refresh()
    point = repository.point("vm000@latest")
    rows = next(repository.map(point.disks[0]).rows())
    return f"{point.id}, {len(rows)} extents"


def prune_plan(repository: Repository) -> str:
    """What prune would drop."""
    rules = prune.rules_for_all(KeepByAge(last=3, daily=14, weekly=8, monthly=12))
    plan = prune.plan(repository.points(), rules, pins=(), now=NOW)
    return f"{sum(not decision.keep for decision in plan)} would go"


def refresh(repository: Repository) -> str:
    """The index cache brought up to the tier."""
    repository.index.refresh()
    return f"{sum(1 for _ in repository.index.packs())} packs"


def garbage(repository: Repository) -> str:
    """gc without a deletion: everything that decides about one."""
    found = gc.collect(repository, dry_run=True)
    return f"{found.packs} packs, {found.needed} needed"


def anew(repository: Repository) -> str:
    """An index cache made from the parts that there are."""
    with with_fresh_index(repository) as fresh:
        return refresh(fresh)


def collecting(repository: Repository) -> str:
    """gc for real: nothing is garbage, but index parts are put together."""
    before = len(list(repository.tier.list(layout.INDEX)))
    found = gc.collect(repository)
    after = len(list(repository.tier.list(layout.INDEX)))
    return f"{found.index_parts} of {before} index parts rewritten, {after} are left"


def incremental(repository: Repository) -> str:
    """Real commits of ever more scattered runs of 64 KiB: what each adds beside the data, and how long it takes."""
    lines = []
    dice = np.random.default_rng(len(list(repository.tier.list(layout.POINTS))))  # other data each time
    point = repository.point("vm000@latest")
    with ThreadPoolExecutor(2) as pool, repository.working_on(point.vm):
        for count in (1, 16, 256, 1024):
            point, nodes, stored, objects, took = one_incremental(repository, point, count, dice, pool)
            lines.append(
                f"{count} runs: {nodes} nodes, {stored / 1e3:.0f} kB in {objects} objects"
                f" ({100 * stored / (count * GRID):.1f} %), commit {took:.2f} s"
            )
    return "; ".join(lines)


def begun_to(begun: float) -> float:
    """Seconds since."""
    return time.perf_counter() - begun


def one_incremental(
    repository: Repository, parent: RestorePoint, count: int, dice: np.random.Generator, pool: ThreadPoolExecutor
) -> tuple[RestorePoint, int, int, int, float]:
    """(the new point, new nodes, bytes and objects beside data packs, seconds) of one real commit."""
    data = dice.bytes(count * GRID)
    writer = repository.pack_writer(repository.tier.staging_dir(), "zstd:1")
    rows = np.zeros(count, ROW)
    rows["offset"] = np.sort(dice.choice(DISK // GRID, count, replace=False)) * GRID
    rows["length"] = GRID
    for number in range(count):
        chunk = data[number * GRID : (number + 1) * GRID]
        rows["chunk"][number] = np.frombuffer(repository.keyring.chunk_id(chunk), np.uint8)
        writer.append(rows["chunk"][number].tobytes(), chunk)
    packs = writer.finish()
    for pack in packs:
        repository.tier.adopt(pack.path, pack.key)
    before = sizes(repository)
    disk = parent.disks[0]
    root, nodes = repository.map(disk).replace(rows)
    fresh = DiskRecord("vda", DISK, root.hex(), disk.level, "qcow2", disk.identity)
    when = parent.time + 60
    point = RestorePoint(
        id=points.new_point_id(when),
        vm=parent.vm,
        vm_uuid=parent.vm_uuid,
        time=when,
        kind="incremental",
        reason="",
        parent=parent.id,
        consistency="crash",
        verified=True,
        checkpoint="vmcellar-x",
        disks=(fresh,),
        checkpoint_xml=parent.checkpoint_xml,
    )
    begun = time.perf_counter()
    done = repository.commit({pack.id: pack.rows for pack in packs}, nodes, {}, point, pool)
    took = begun_to(begun)
    new = {key: size for key, size in sizes(repository).items() if key not in before}
    return done, len(nodes), sum(new.values()), len(new), took


def sizes(repository: Repository) -> dict[str, int]:
    """All metadata objects."""
    return {
        key: size for prefix in (layout.META, layout.INDEX, layout.POINTS) for key, size in repository.tier.list(prefix)
    }


MEASURES: dict[str, Callable[[Repository], str]] = {
    "listing": listing,
    "latest": latest,
    "prune": prune_plan,
    "refresh": refresh,
    "anew": anew,
    "gc": garbage,
    "collect": collecting,
    "incremental": incremental,
}


def measure_here(name: str, folder: Path) -> None:
    """Do one measure in this process and print its figures as JSON."""
    repository = opened(folder)
    begun, cpu = time.perf_counter(), time.process_time()
    words = MEASURES[name](repository)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    repository.close()
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak / 1024, "words": words, **COUNTS}))


def measure(name: str, folder: Path, title: str, asked: str = "") -> None:
    """One measure in a new process; prints a line."""
    command = [sys.executable, "-m", "bench.scale", "--measure", name, "--directory", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-3000:]}")
    found = json.loads(done.stdout)
    print(
        f"  {title:34} {found['wall']:7.2f} s  cpu {found['cpu']:7.2f} s  peak {found['peak']:5.0f} MiB"
        f"  {found['objects opened']} objects, {found['reads']} reads, {found['bytes read'] / 1e6:.0f} MB"
        f"  {asked}\n      {found['words']}",
        flush=True,
    )


def describe(folder: Path) -> str:
    """How much metadata there is."""
    tier = LocalTier(folder / "hot")
    parts = []
    for prefix in (layout.META, layout.INDEX, layout.POINTS, layout.DATA):
        found = [size for _, size in tier.list(prefix)]
        parts.append(f"{prefix} {len(found)} objects, {sum(found) / 1e6:.0f} MB")
    return "; ".join(parts)


def steps(vms: int) -> Iterator[int]:
    """After how many VMs gc is measured."""
    yield from sorted({max(1, vms // 10), max(1, vms * 3 // 10), vms})


def run(count: int, folder: Path) -> None:
    """Build, and measure on the way."""
    for name in ("hot", "cache"):
        (folder / name).mkdir()
    builder = Builder(folder)
    built, begun = 0, time.perf_counter()
    for vms in steps(max(1, count // PER_VM)):
        while built < vms:
            builder.vm(built)
            built += 1
        print(f"{vms * PER_VM} points, built {begun_to(begun):.0f} s after the start; {describe(folder)}", flush=True)
        measure("gc", folder, "gc, dry run")
    builder.close()
    finish(folder)


def finish(folder: Path) -> None:
    """Everything but the dry runs of gc."""
    measure("refresh", folder, "index cache, made anew")
    measure("listing", folder, "listing, without its cache")
    print(f"  caches: {sum(path.stat().st_size for path in (folder / 'cache').iterdir()) / 1e6:.0f} MB")
    measure("listing", folder, "listing", "asked: 2 s")
    measure("latest", folder, "open VM@latest, index included", "asked: 1 s")
    measure("prune", folder, "prune plan, points included", "asked: 10 s")
    measure("incremental", folder, "four incrementals, real commits")
    measure("collect", folder, "gc, index parts put together")
    measure("refresh", folder, "index cache brought up to them")
    measure("anew", folder, "index cache made from them")
    measure("latest", folder, "open VM@latest, index included", "asked: 1 s")
    measure("incremental", folder, "four incrementals after that")


def main() -> int:
    """Parse; build and measure, or be one of the measuring processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000, help=f"a multiple of {PER_VM}")
    parser.add_argument("--directory", type=Path, default=None, help="where to build; 10 GB for 10,000 points")
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_here(options.measure, options.directory)
        return 0
    with tempfile.TemporaryDirectory(prefix="vmcellar-scale-", dir=options.directory) as folder:
        run(options.points, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
