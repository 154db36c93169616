"""Restores beside their peers: the same data out of each tool's own storage into new raw and qcow2 images, in turn.

    ./run bench restore [--disk 2g|8g] [--rounds 3] [--dense] [--profile]

The disk is the lab's mixed one, with its holes, or without them (`--dense`). Peers: virtnbdrestore of a backup by
virtnbdbackup (plain and --compress), `restic restore` of the image file, `qemu-img convert` and nbdcopy of the plain
image. Before each run the kernel forgets what it has cached of the sources. Two times are taken of each command: to its
end, and until the new image is durable (ours makes it so by itself; after the others, and their qemu-nbd, comes an
fsync). CPU seconds are those of the command and of what it waits for, the kernel's writing back for others not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.restore_store import MIB, make_repository
from lab import daemons
from lab.bigdisk import DISKS, build
from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.paths import give_to_qemu, vm_folder

OURS = "vmcellar"
VIRTNBD, VIRTNBD_SMALL = "virtnbdrestore", "virtnbdrestore, --compress"
RESTIC = "restic restore"
CONVERT, NBDCOPY = "qemu-img convert", "nbdcopy"
ASKED = (
    ("qcow2", VIRTNBD, 3.0),
    ("qcow2", VIRTNBD_SMALL, 3.0),
    ("raw", RESTIC, 2.0),
    ("raw", NBDCOPY, 0.6),
    ("qcow2", NBDCOPY, 0.6),
    ("raw", CONVERT, 0.0),
    ("qcow2", CONVERT, 0.0),
)
"""Format, peer, and how many times as fast as it we are asked to be."""

PASSWORD = {"RESTIC_PASSWORD": "bench"}
TOOL = Path(sys.executable).parent / "vmcellar"


@dataclass(slots=True)
class Sources:
    """Where each tool reads from, below `folder`; `point` is ours."""

    folder: Path
    raw: Path
    point: str

    def command(self, name: str, image_format: str, out: Path) -> tuple[list[str | Path], Path]:
        """The command that restores into the empty folder `out`, and the image that it makes."""
        image = out / f"vda.{image_format}"
        if name == OURS:
            config = self.folder / "vmcellar.yaml"
            restore: list[str | Path] = [TOOL, "--config", config, "restore", self.point, "--to", out]
            return [*restore, "--format", image_format, "--json"], image
        if name in (VIRTNBD, VIRTNBD_SMALL):
            backup = self.folder / ("peer-small" if name == VIRTNBD_SMALL else "peer")
            log = self.folder / "peer.log"
            return ["virtnbdrestore", "-n", "-a", "restore", "-i", backup, "-o", out, "-L", log], out / "guest.qcow2"
        if name == RESTIC:
            repository = self.folder / "restic"
            return ["restic", "-q", "-r", repository, "restore", "latest", "--target", out], out / "source.raw"
        if name == CONVERT:
            return ["qemu-img", "convert", "-f", "raw", "-O", image_format, self.raw, image], image
        source: list[str | Path] = ["[", "qemu-nbd", "-r", "-f", "raw", self.raw, "]"]
        if image_format == "raw":
            return ["nbdcopy", "--", *source, image], image
        return ["nbdcopy", "--", *source, "[", "qemu-nbd", "-f", "qcow2", image, "]"], image


CASES = (
    *((OURS, "raw"), (OURS, "qcow2"), (VIRTNBD, "qcow2"), (VIRTNBD_SMALL, "qcow2"), (RESTIC, "raw")),
    *((CONVERT, "raw"), (CONVERT, "qcow2"), (NBDCOPY, "raw"), (NBDCOPY, "qcow2")),
)


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of one run: until the command ended, until its image was durable, and of CPU; `engine` of ours alone."""

    ended: float
    durable: float
    cpu: float
    engine: float = 0.0


@dataclass(slots=True)
class Figures:
    """All runs by tool and format."""

    runs: dict[tuple[str, str], list[Took]] = field(default_factory=lambda: defaultdict(list))

    def middle(self, case: tuple[str, str], what: str) -> float:
        """The median of one column."""
        values: list[float] = [getattr(took, what) for took in self.runs[case]]
        return statistics.median(values)


def prepare(folder: Path, disk: str, *, dense: bool) -> Sources:
    """The image, and the backups of all tools."""
    raw = folder / "source.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", build(DISKS[disk]), raw], check=True)
    if dense:
        _close_holes(raw)
    point = make_repository(folder, raw)
    restic: list[str | Path] = ["restic", "-q", "-r", folder / "restic"]
    for more in (["init"], ["backup", "source.raw"]):
        subprocess.run([*restic, *more], cwd=folder, env={**os.environ, **PASSWORD}, check=True, capture_output=True)
    _peer_backups(folder, raw)
    os.sync()
    return Sources(folder, raw, point)


def _close_holes(raw: Path) -> None:
    """Move the data together, in MiB, and end the image with it."""
    dense = raw.with_suffix(".dense")
    with raw.open("rb") as source, dense.open("wb") as target:
        end, size = 0, raw.stat().st_size
        while end < size:
            try:
                start = os.lseek(source.fileno(), end, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            end = os.lseek(source.fileno(), start, os.SEEK_HOLE)
            for place in range(start, end, MIB):
                target.write(os.pread(source.fileno(), min(MIB, end - place), place))
        target.truncate(-(-target.tell() // MIB) * MIB)
    dense.rename(raw)


def _peer_backups(folder: Path, raw: Path) -> None:
    image = folder / "guest.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    give_to_qemu(image)
    disks = [DiskSpec("vda", raw.stat().st_size)]
    with LabGuest(folder, disks, images={"vda": image}) as guest:
        guest.start(paused=True)
        for name, more in (("peer", []), ("peer-small", ["--compress"])):
            command: list[str | Path] = ["virtnbdbackup", "-n", "-d", guest.name, "-l", "copy", "-o", folder / name]
            subprocess.run([*command, *more], check=True, capture_output=True)
    image.unlink()


def run_once(sources: Sources, name: str, image_format: str) -> Took:
    """One restore into a new folder, which goes again. RuntimeError with its words when the command fails."""
    out = sources.folder / "out"
    out.mkdir()
    command, image = sources.command(name, image_format, out)
    if name == NBDCOPY and image_format == "qcow2":
        size = str(sources.raw.stat().st_size)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, size], check=True)
    forget(sources.folder)
    before, begun = _children(), time.monotonic()
    done = subprocess.run(command, env={**os.environ, **PASSWORD}, capture_output=True, text=True, check=False)
    ended = time.monotonic() - begun
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr[-2000:]}")
    _wait_for_servers(out)
    _make_durable(image if image.exists() else _largest(out))
    durable = time.monotonic() - begun
    cpu = _children() - before
    shutil.rmtree(out)
    return Took(ended, durable, cpu, json.loads(done.stdout)["seconds"] if name == OURS else 0.0)


def forget(folder: Path) -> None:
    """Have the kernel drop what it caches of all files below a folder; they are durable already."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _wait_for_servers(out: Path) -> None:
    """virtnbdrestore leaves a qemu-nbd behind that writes on for a moment."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if subprocess.run(["pgrep", "-f", f"^qemu-nbd.*{out}"], capture_output=True, check=False).returncode:
            return
        time.sleep(0.01)


def _largest(out: Path) -> Path:
    """virtnbdrestore names images by the disk's own path, as its version will have it."""
    return max((path for path in out.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _make_durable(image: Path) -> None:
    handle = os.open(image, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def check(sources: Sources) -> None:
    """What we restore is the source, before anything is measured."""
    for image_format in ("raw", "qcow2"):
        out = sources.folder / "out"
        command, image = sources.command(OURS, image_format, out)
        subprocess.run(command, check=True, capture_output=True)
        compare: list[str | Path] = ["qemu-img", "compare", "-q", "-f", "raw", "-F", image_format, sources.raw, image]
        subprocess.run(compare, check=True)
        shutil.rmtree(out)


def show(figures: Figures, data: int) -> None:
    """Medians and ratios of durable times."""
    print(f"\n{'':34}{'ended':>8}{'durable':>9}{'least':>7}{'most':>7}{'cpu':>7}{'MB/s':>7}")
    for case, runs in figures.runs.items():
        durable = figures.middle(case, "durable")
        least, most = min(took.durable for took in runs), max(took.durable for took in runs)
        columns = f"{figures.middle(case, 'ended'):8.2f}{durable:9.2f}{least:7.2f}{most:7.2f}"
        print(f"{case[0] + ' ' + case[1]:34}{columns}{figures.middle(case, 'cpu'):7.2f}{data / durable / 1e6:7.0f}")
    for image_format in ("raw", "qcow2"):
        print(f"engine alone, {image_format}: {figures.middle((OURS, image_format), 'engine'):.2f} s")
    print("\nhow many times as fast as a peer, durable: the whole command, and the engine alone")
    for image_format, peer, asked in ASKED:
        theirs = figures.middle((peer, image_format), "durable")
        whole = theirs / figures.middle((OURS, image_format), "durable")
        engine = theirs / figures.middle((OURS, image_format), "engine")
        wanted = f"(asked: {asked:g})" if asked else ""
        print(f"  {peer + ' ' + image_format:34}{whole:6.2f}{engine:6.2f}   {wanted}")


def profile(sources: Sources) -> None:
    """Where the time of our restore to raw goes, by function of Python."""
    script = (
        "import cProfile, pstats, sys; from pathlib import Path; from bench import restore_store as s;"
        "p = cProfile.Profile(); p.runcall(s.restore, Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]));"
        "pstats.Stats(p).sort_stats('cumulative').print_stats(30)"
    )
    out = sources.folder / "out"
    command: Sequence[str | Path] = [sys.executable, "-c", script, sources.folder / "vmcellar.yaml", sources.point, out]
    subprocess.run(command, check=True)
    shutil.rmtree(out)


def main() -> int:
    """Parse the arguments, build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", choices=sorted(DISKS), default="2g")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dense", action="store_true", help="a disk without holes")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", default="", help="only tools whose name begins so")
    options = parser.parse_args()
    daemons.ensure()
    with vm_folder("restore") as folder:
        sources = prepare(folder, options.disk, dense=options.dense)
        check(sources)
        if options.profile:
            profile(sources)
        figures = Figures()
        for number in range(options.rounds):
            cases = [case for case in CASES if case[0].startswith(options.only)]
            for name, image_format in cases[number % len(cases) :] + cases[: number % len(cases)]:
                took = run_once(sources, name, image_format)
                figures.runs[name, image_format].append(took)
                print(f"  {name + ' ' + image_format:34}{took.durable:7.2f} s  cpu {took.cpu:6.2f}", flush=True)
        report(sources, figures, options.disk)
    return 0


def report(sources: Sources, figures: Figures, disk: str) -> None:
    """What was restored, and how fast."""
    data = sources.raw.stat().st_blocks * 512
    print(f"disk {disk}: {data / 1e9:.2f} GB of data in {sources.raw.stat().st_size / 1e9:.2f} GB")
    sizes: Mapping[str, int] = {
        name: sum(path.stat().st_blocks * 512 for path in (sources.folder / name).rglob("*") if path.is_file())
        for name in ("repository", "restic", "peer", "peer-small")
    }
    print("stored: " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sizes.items()))
    if len(figures.runs) == len(CASES):
        show(figures, data)


if __name__ == "__main__":
    sys.exit(main())
