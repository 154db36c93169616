"""Instant restore of sparse disks: seconds to the started VM, and until all of its disks came over.

    ./run bench boot [--sizes 1g,64g,1t] [--data 256] [--plain] [--limit 120]

A lab guest with a disk of 32 MiB and one of the size named, `--data` MiB of random bytes scattered over it, is backed
up, then booted from the repository in this process. With `--plain` the overlays are made as `qemu-img create` makes
them, holes unknown, for comparison; what is not over after `--limit` seconds is stopped there, and told how far it got.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import libvirt

from lab import daemons
from lab.bigdisk import GIB, scatter
from lab.disks import MIB, DiskSpec
from lab.guest import LabGuest
from lab.paths import vm_folder
from tests.proof.cellar import Cellar
from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken, no_progress
from vmcellar.repository.repository import Repository
from vmcellar.restore import boot_disks
from vmcellar.restore.boot import Booter
from vmcellar.restore.boot_journal import begin, new_entry
from vmcellar.restore.qcow2 import UsedClusters
from vmcellar.restore.serve import Opening
from vmcellar.sources.libvirt_connection import Connection

SIZES = {"1g": GIB, "64g": 64 * GIB, "1t": 1024 * GIB}


def plain_overlay(path: Path, backing: str, used: UsedClusters) -> None:
    """As `qemu-img create` makes it."""
    options: list[str | Path] = ["-q", "-f", "qcow2", "-u", "-F", "raw", "-b", backing, path, str(used.size)]
    subprocess.run(["qemu-img", "create", *options], check=True)


@contextmanager
def new_vm() -> Iterator[str]:
    """A name for the VM, which is removed at the end."""
    name = f"lab-{uuid.uuid4().hex[:8]}-boot"
    try:
        yield name
    finally:
        connection = libvirt.open(daemons.URI)
        for domain in connection.listAllDomains():
            if domain.name() == name:
                if domain.isActive():
                    domain.destroy()
                domain.undefine()
        connection.close()


def measure(label: str, data: int, limit: float, *, plain: bool) -> None:
    """One size: back up, boot, bring over."""
    with vm_folder("boot") as folder, new_vm() as name:
        disks = (DiskSpec("vda", 32 * MIB, ext4=True), DiskSpec("vdb", SIZES[label]))
        with LabGuest(folder, disks) as guest:
            guest.start(paused=True)
            scatter(guest, "vdb", data, seed=1)
            cellar = Cellar(folder / "cellar")
            summary = cellar.backup(guest)
        repository = Repository.open(cellar.config)
        point = repository.point(summary.id)
        targets = tuple(disk.target for disk in point.disks)
        entry = new_entry(name, str(uuid.uuid4()), point.id, point.vm, folder / "out", targets)
        booter = Booter(repository, Opening(cellar.file), Connection(daemons.URI))
        cancel = CancelToken()
        timer = threading.Timer(limit, cancel.cancel)
        started: list[float] = []
        changed = patch.object(boot_disks, "write_overlay", plain_overlay) if plain else nullcontext()
        begun = time.monotonic()
        with begin(cellar.config.state, entry) as journal, changed:
            timer.start()
            try:
                booter.go(journal, started.append, no_progress, cancel)
                ended = f"all over after {time.monotonic() - begun:.1f} s"
            except CancelledError:
                info = Connection(daemons.URI).domain(name).blockJobInfo("vdb")
                part = info["cur"] / info["end"] if info else 0.0
                ended = f"stopped after {limit:.0f} s with {part:.1%} of the disk over"
                booter.abort(journal)
            timer.cancel()
        image = entry.overlay("vdb")
        taken = f", image takes {image.stat().st_blocks * 512 / MIB:.0f} MiB" if image.exists() else ""
        how = "holes unknown" if plain else "holes known"
        print(f"{label:4} {how}: started after {started[0]:.2f} s, {ended}{taken}", flush=True)


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1g,64g,1t")
    parser.add_argument("--data", type=int, default=256, help="MiB of data on the large disk")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--limit", type=float, default=120.0)
    options = parser.parse_args()
    daemons.ensure()
    for label in options.sizes.split(","):
        measure(label, options.data * MIB, options.limit, plain=options.plain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
