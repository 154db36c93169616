"""Memory of the backup process: a sparse disk of 1 TiB with 4 GiB of incompressible data all over it.

    ./run bench memory

Full, incremental after 64 MiB of scattered writes, and restore, each in a process of its own; prints the most memory
that it ever had (asked: under 512 MiB for the backups).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.measure import timed
from lab import daemons
from lab.bigdisk import SPARSE, big_guest, scatter
from lab.guest import LabGuest
from lab.paths import vm_folder
from vmcellar.config.load import load_config
from vmcellar.repository.repository import Repository

MIB = 1 << 20
CHANGED = 64 * MIB
SEED = 100


def main() -> int:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    daemons.ensure()
    with vm_folder("bench") as folder, big_guest(SPARSE) as guest:
        config = make_repository(folder)
        measure("full", guest, config, "backup", guest.name)
        scatter(guest, "vda", CHANGED, SEED)
        point = measure("incremental", guest, config, "backup", guest.name)
        measure("restore", guest, config, "restore", point, str(folder / "restored"))
    return 0


def make_repository(folder: Path) -> Path:
    """A new repository; its configuration file."""
    (folder / "passphrase").write_text("bench\n")
    config = folder / "vmcellar.yaml"
    names = {"state": str(folder / "state"), "scratch": str(folder / "scratch")}
    key = {"file": str(folder / "passphrase")}
    config.write_text(json.dumps({"tiers": {"hot": str(folder / "repository")}, "key": key, **names}))
    Repository.init(load_config(config)).close()
    return config


def measure(what: str, guest: LabGuest, config: Path, *arguments: str) -> str:
    """Run one command of the engine and print its costs; the point that came of it, if any."""
    cost = timed([sys.executable, "-m", "bench.engine_once", config, *arguments], guest.qemu_pid())
    found = json.loads(cost.output)
    memory = found["memory"] / MIB
    print(
        f"{what:12} {found['took']:6.2f} s  cpu {cost.cpu:6.2f}  qemu {cost.qemu:5.2f}  {memory:5.0f} MiB", flush=True
    )
    return str(found.get("id", ""))


if __name__ == "__main__":
    sys.exit(main())
