"""Reading alone: our `export` stage, which also hashes and looks every chunk up, beside nbdcopy to a file.

    ./run bench export [--disk 8g] [--rounds 5] [--folder /dev/shm]

Both read the same held instant of the same paused guest over the same NBD export and write to the same tmpfs, in turn.
Segments are read two at a time, as in a backup. Everything lands (`landing.direct: 0`), as nbdcopy has no compressor
to hand chunks to. Prints medians and the ratio of wall time, nbdcopy over us (asked: at least 0.7).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.measure import Cost, cpu_of, medians, timed
from lab import daemons
from lab.bigdisk import DISKS, big_guest
from lab.guest import LabGuest
from lab.paths import vm_folder
from vmcellar.backup import pipeline, stages
from vmcellar.backup.model import BackupRequest, SegmentHandle
from vmcellar.config.load import load_config
from vmcellar.engine import Engine
from vmcellar.progress import CancelToken, no_progress
from vmcellar.repository.repository import Repository
from vmcellar.sources.libvirt_source import LibvirtSource


class Bench:
    """One guest, one engine, one folder on tmpfs."""

    def __init__(self, guest: LabGuest, folder: Path, landing: Path) -> None:
        self.guest = guest
        self.landing = landing
        (folder / "passphrase").write_text("bench\n")
        file = folder / "vmcellar.yaml"
        file.write_text(
            json.dumps(
                {
                    "tiers": {"hot": str(folder / "repository")},
                    "key": {"file": str(folder / "passphrase")},
                    "state": str(folder / "state"),
                    "scratch": str(folder / "scratch"),
                    "landing": {"dir": str(landing), "budget": "64GiB", "direct": 0},
                }
            )
        )
        config = load_config(file)
        self.engine = Engine(config, Repository.init(config), LibvirtSource(config.libvirt.uri, config.scratch))

    def nbdcopy(self) -> Cost:
        """nbdcopy of the held instant, with its own settings."""
        target = self.landing / "copy.raw"
        cost = self._held(lambda uri: timed(["nbdcopy", uri, target], self.guest.qemu_pid()))
        target.unlink()
        return cost

    def export(self) -> Cost:
        """Our stage on every segment of the held instant."""
        return self._held(None)

    def _held(self, copy: Callable[[str], Cost] | None) -> Cost:
        handle = stages.snapshot(self.engine, BackupRequest(self.guest.name, mode="full"), CancelToken())
        try:
            if copy is not None:
                return copy(self.engine.run(handle.run_id).capture.uri("vda"))
            qemu, cpu, begun = cpu_of(self.guest.qemu_pid()), _own_cpu(), time.monotonic()
            with ThreadPoolExecutor(pipeline.READING) as reading:
                list(reading.map(lambda segment: self._read(handle.run_id, segment), handle.segments))
            wall = time.monotonic() - begun
            return Cost(wall, _own_cpu() - cpu, cpu_of(self.guest.qemu_pid()) - qemu)
        finally:
            stages.abandon(self.engine, handle.run_id, "the bench is done with it")

    def _read(self, run_id: str, segment: SegmentHandle) -> None:
        stages.export(self.engine, run_id, segment.target, segment.number, no_progress, CancelToken())


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", choices=sorted(DISKS), default="8g")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default="/dev/shm", help="where both write; a tmpfs")  # noqa: S108  (as is usual)
    options = parser.parse_args()
    daemons.ensure()
    landing = Path(tempfile.mkdtemp(prefix="vmcellar-bench-", dir=options.folder))
    try:
        with vm_folder("bench") as folder, big_guest(DISKS[options.disk]) as guest:
            report(Bench(guest, folder, landing), options.rounds)
    finally:
        shutil.rmtree(landing)
    return 0


def report(bench: Bench, rounds: int) -> None:
    """Measure in turn, the order changing from round to round; print medians and the ratio."""
    costs: dict[str, list[Cost]] = {"nbdcopy": [], "export": []}
    works = {"nbdcopy": bench.nbdcopy, "export": bench.export}
    for number in range(rounds):
        for name in sorted(works, reverse=bool(number % 2)):
            cost = works[name]()
            costs[name].append(cost)
            print(f"  {name:10} {cost.wall:6.2f} s  cpu {cost.cpu:6.2f}  qemu {cost.qemu:5.2f}", flush=True)
    found = {name: medians(each) for name, each in costs.items()}
    for name, m in found.items():
        print(f"{name:10} median {m.wall:6.2f} s ({m.least:.2f} to {m.most:.2f})  cpu {m.cpu:.2f}  qemu {m.qemu:.2f}")
    print(f"export reaches {found['nbdcopy'].wall / found['export'].wall:.2f} of nbdcopy's speed (asked: 0.70)")


if __name__ == "__main__":
    sys.exit(main())
