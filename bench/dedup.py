"""Deduplication beside restic and borg: the same three images of this operating system into one repository each.

    ./run bench dedup [--rounds 3] [--megabytes 700] [--directory DIR]

1. `base`: an ext4 image with the files of some of this system's Debian packages.
2. `other`: a second installation: most of the same packages, some others, so that files lie elsewhere.
3. `clone`: a copy of `base` in which packages were removed and others installed: a VM made from a template.

Each tool takes the three images in that order, as image files, with its own defaults; ours are served by qemu-nbd as
disks of VMs that are switched off, and its CPU time counts as ours. The tools take turns. Prints what each image added,
wall and CPU seconds, and ratios of medians. Images are in the kernel's cache; what is stored goes to the device.
Asked: at most 1.1 times the bytes of restic, at least twice its speed, at least three times that of borg.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench.measure import Cost, timed
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest
from vmcellar.cli.leaving import hurry, leave
from vmcellar.config.load import load_config
from vmcellar.engine import Engine
from vmcellar.repository.repository import Repository
from vmcellar.sources.base import CaptureRequest, CaptureResult, Extent, Reconciled, ScratchPressure, SourceDisk
from vmcellar.sources.nbd import ExportReader

MIB = 1 << 20
IMAGES = ("base", "other", "clone")
AS_A_COMMAND = """
import sys
from pathlib import Path
from vmcellar.memory import collect_rarely
collect_rarely()
from vmcellar.config.load import load_config
from vmcellar.repository.ahead import unlock_ahead
unlock_ahead(load_config(Path(sys.argv[-1])))
from bench.dedup import main
main()
"""
"""What a process of ours runs: it begins as `vmcellar backup` does, and opens the keys beside its imports."""
OURS, CONTENT, RESTIC, BORG = "vmcellar", "content", "restic", "borg"
FIXED = "6b1f0d5e-0000-4000-8000-000000000001"


# the images


def packages() -> dict[str, list[Path]]:
    """The regular files of the installed Debian packages under /usr, each file once, in an order fixed by names."""
    lists = sorted(
        Path("/var/lib/dpkg/info").glob("*.list"), key=lambda path: hashlib.sha256(path.name.encode()).digest()
    )
    found = {}
    for each in lists:
        files = [Path(line) for line in each.read_text().splitlines() if line.startswith("/usr/")]
        found[each.stem] = [path for path in files if path.is_file() and not path.is_symlink()]
    return found


def choose(every: Mapping[str, list[Path]], total: int) -> tuple[list[str], list[str]]:
    """(packages of `total` bytes, packages of a sixth of that beside them); none larger than a tenth."""
    chosen: tuple[list[str], list[str]] = ([], [])
    held = 0
    for name, files in every.items():
        size = sum(path.stat().st_size for path in files)
        if 0 < size < total // 10:
            chosen[held >= total].append(name)
            held += size
        if held >= total * 7 // 6:
            break
    return chosen


def install(names: Sequence[str], every: Mapping[str, list[Path]], tree: Path) -> None:
    """Copy the files of these packages into a tree."""
    for name in names:
        for path in every[name]:
            target = tree / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def make_image(image: Path, size: int, names: Sequence[str], every: Mapping[str, list[Path]]) -> None:
    """An ext4 image with these packages."""
    with tempfile.TemporaryDirectory(dir=image.parent) as tree:
        install(names, every, Path(tree))
        with image.open("wb") as file:
            file.truncate(size)
        command: list[str | Path] = [
            "mkfs.ext4",
            "-q",
            "-F",
            "-U",
            FIXED,
            "-E",
            f"hash_seed={FIXED},root_owner=0:0",
            "-d",
            tree,
            image,
        ]
        subprocess.run(command, check=True, capture_output=True)


def update(image: Path, gone: Sequence[str], new: Sequence[str], every: Mapping[str, list[Path]]) -> None:
    """Remove packages from an image and install others into it, as its own system would."""
    folders = sorted({parent for name in new for path in every[name] for parent in path.parents if parent != Path("/")})
    script = [f'rm "{path}"' for name in gone for path in every[name]]
    script += [f'mkdir "{folder}"' for folder in folders]
    script += [f'write "{path}" "{path}"' for name in new for path in every[name]]
    words = "\n".join(script) + "\n"
    subprocess.run(
        ["debugfs", "-w", "-f", "/dev/stdin", image], input=words, text=True, check=True, capture_output=True
    )


def build(folder: Path, megabytes: int) -> list[Path]:
    """The three images."""
    every = packages()
    some, others = choose(every, megabytes * MIB)
    images = [folder / f"{name}.raw" for name in IMAGES]
    size = megabytes * MIB * 2
    make_image(images[0], size, some, every)
    kept = [name for number, name in enumerate(some) if number % 10]
    make_image(images[1], size, [*others[::2], *kept], every)
    subprocess.run(["cp", "--sparse=always", images[0], images[2]], check=True)
    update(images[2], some[::20], others[1::2], every)
    return images


# our path: an image file as a disk


@dataclass
class ImageCapture:
    """The image of a VM that is switched off, served by qemu-nbd."""

    source: ImageSource
    result: CaptureResult
    artifacts: Mapping[str, bytes] = field(default_factory=lambda: {"domain.xml": b"<domain/>"})

    def uri(self, target: str) -> str:
        """See Capture."""
        return f"nbd+unix:///{target}?socket={self.source.socket}"

    def open_reader(self, target: str) -> ExportReader:
        """See Capture."""
        return ExportReader(self.uri(target), disk=target)

    def dirty(self, target: str) -> list[Extent] | None:  # noqa: ARG002
        """See Capture."""
        return None

    def allocated(self, target: str) -> list[Extent]:
        """See Capture."""
        with self.open_reader(target) as reader:
            return list(reader.extents())

    def scratch_pressure(self) -> ScratchPressure:
        """See Capture: nothing is written."""
        return ScratchPressure(0, 1)

    def alive(self) -> bool:
        """See Capture."""
        return True

    def end(self) -> None:
        """See Capture: the server ends with the process."""


@dataclass
class ImageSource:
    """One image, at the instant in which it is."""

    socket: Path
    size: int
    held: ImageCapture | None = None

    def begin(self, request: CaptureRequest) -> ImageCapture:
        """See Source."""
        disk = SourceDisk("vda", self.size, "image", "raw", tracked=False, full_reason="an image file")
        self.held = ImageCapture(
            self,
            CaptureResult(
                vm=request.vm,
                vm_uuid=FIXED,
                run_id=request.run_id,
                repository_id=request.repository_id,
                checkpoint="",
                checkpoint_xml="",
                parent=None,
                consistency="crash",
                consistency_reason="",
                freeze_seconds=0.0,
                began=time.time(),
                socket="",
                scratch="",
                disks=(disk,),
                uncovered=(),
            ),
        )
        return self.held

    def reattach(self, result: CaptureResult) -> ImageCapture | None:  # noqa: ARG002
        """See Source."""
        return self.held

    def reconcile(
        self,
        vm: str,  # noqa: ARG002
        repository_id: str,  # noqa: ARG002
        kept: Collection[str],  # noqa: ARG002
        live_runs: Collection[str],  # noqa: ARG002
    ) -> list[Reconciled]:
        """See Source: nothing is ever left."""
        return []

    def left_behind(self, repository_id: str) -> set[str]:  # noqa: ARG002
        """See Source."""
        return set()


@contextmanager
def served(image: Path, socket: Path) -> Iterator[Callable[[], None]]:
    """The image as export `vda` of a qemu-nbd; to be called before it is read: it starts beside the rest."""
    environment = {f"MALLOC_{name}_": str(64 * MIB) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD")}
    command = ["qemu-nbd", "-r", "-t", "-e", "8", "-f", "raw", "-x", "vda", "-k", str(socket), str(image)]
    with subprocess.Popen(command, env={**os.environ, **environment}) as server:

        def ready() -> None:
            while not socket.exists():
                if server.poll() is not None:
                    raise RuntimeError("qemu-nbd does not start")
                time.sleep(0.002)

        try:
            yield ready
        finally:
            server.terminate()


def back_up_image(config_path: Path, image: Path, *, content: bool) -> None:
    """The whole backup of one image, in this process. Its server starts beside, as libvirt's does in a running QEMU."""
    socket = config_path.parent / "nbd.socket"
    with served(image, socket) as ready:
        config = load_config(config_path)
        engine = Engine(config, Repository.open(config), ImageSource(socket, image.stat().st_size))
        ready()
        pipeline.run(engine, BackupRequest(image.stem, chunks="content" if content else "grid"))
        engine.cpu.shutdown()
        engine.repository.close()
    socket.unlink(missing_ok=True)


# the three tools


def ours(folder: Path, *options: str) -> Callable[[Path], Cost]:
    """A new repository of ours."""
    (folder / "passphrase").write_text("bench\n")
    places = {name: str(folder / name) for name in ("state", "scratch")}
    key = {"file": str(folder / "passphrase")}
    config = folder / "vmcellar.yaml"
    config.write_text(json.dumps({"tiers": {"hot": str(folder / "repository")}, "key": key, **places}))
    Repository.init(load_config(config)).close()
    return lambda image: timed([sys.executable, "-c", AS_A_COMMAND, *options, "--image", image, config], os.getpid())


def by_content(folder: Path) -> Callable[[Path], Cost]:
    """The same with `chunks: content`."""
    return ours(folder, "--content")


def restic(folder: Path) -> Callable[[Path], Cost]:
    """A new repository of restic."""
    environment = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(folder / "cache")}
    base = ["restic", "-q", "-r", str(folder / "repository")]
    timed([*base, "init"], os.getpid(), environment)
    return lambda image: timed([*base, "backup", image], os.getpid(), environment)


def borg(folder: Path) -> Callable[[Path], Cost]:
    """A new repository of borg."""
    environment = {"BORG_PASSPHRASE": "bench", "BORG_BASE_DIR": str(folder / "base")}
    repository = str(folder / "repository")
    timed(["borg", "init", "-e", "repokey-blake2", repository], os.getpid(), environment)
    return lambda image: timed(["borg", "create", f"{repository}::{image.stem}", image], os.getpid(), environment)


TOOLS = {OURS: ours, CONTENT: by_content, RESTIC: restic, BORG: borg}


def stored(folder: Path) -> int:
    """Bytes that a repository's files take."""
    return sum(path.stat().st_size for path in (folder / "repository").rglob("*") if path.is_file())


@dataclass(slots=True)
class Figures:
    """What all rounds of one tool took: per round the sum over the images; what each image added."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    added: list[int] = field(default_factory=list)


def one_round(name: str, images: Sequence[Path], folder: Path, figures: Figures) -> None:
    """All images into a new repository."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}-") as place:
        here = Path(place)
        (here / "repository").mkdir()
        back_up = TOOLS[name](here)
        costs, sizes = [], [0]
        for image in images:
            costs.append(back_up(image))
            sizes.append(stored(here))
    figures.wall.append(sum(cost.wall for cost in costs))
    figures.cpu.append(sum(cost.cpu for cost in costs))
    figures.added = [after - before for before, after in pairwise(sizes)]
    each = ", ".join(f"{image.stem} {cost.wall:.1f} s" for image, cost in zip(images, costs, strict=True))
    print(f"  {name:9} {figures.wall[-1]:6.1f} s  cpu {figures.cpu[-1]:6.1f} s  ({each})", flush=True)


def report(found: Mapping[str, Figures]) -> None:
    """Medians and ratios."""
    for name, figures in found.items():
        added = ", ".join(f"{image} {size / 1e6:.0f} MB" for image, size in zip(IMAGES, figures.added, strict=True))
        print(
            f"{name:9} median {statistics.median(figures.wall):6.1f} s, cpu {statistics.median(figures.cpu):6.1f} s,"
            f" stored {sum(figures.added) / 1e6:.0f} MB: {added}"
        )
    for own, name, asked in ((OURS, RESTIC, 2), (OURS, BORG, 3), (CONTENT, RESTIC, 2), (CONTENT, BORG, 3)):
        mine, peer = found[own], found[name]
        faster = statistics.median(peer.wall) / statistics.median(mine.wall)
        less = statistics.median(peer.cpu) / statistics.median(mine.cpu)
        print(f"{own} beside {name}: {faster:.2f} times as fast (asked: {asked}), its CPU time {less:.2f} times ours")
        print(
            f"  bytes, ours over its: all {sum(mine.added) / sum(peer.added):.2f} (asked, beside restic: 1.1), ", end=""
        )
        ratios = zip(IMAGES, mine.added, peer.added, strict=True)
        print(", ".join(f"{image} {a / b:.2f}" for image, a, b in ratios))


def main() -> int:
    """Parse; build and compare, or be the process that backs one image up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=700, help="files in an image; the image is twice that")
    parser.add_argument("--directory", type=Path, default=None, help="for images and repositories")
    parser.add_argument("--content", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--image", type=Path, nargs=2, metavar=("IMAGE", "CONFIG"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.image:
        back_up_image(options.image[1], options.image[0], content=options.content)
        hurry()  # as `vmcellar backup` ends: without taking the interpreter apart, which is 0.2 s
        leave(SystemExit(0))
        return 0
    found: dict[str, Figures] = defaultdict(Figures)
    with tempfile.TemporaryDirectory(prefix="vmcellar-dedup-", dir=options.directory) as folder:
        images = build(Path(folder), options.megabytes)
        used = ", ".join(f"{image.stem} {image.stat().st_blocks * 512 / 1e6:.0f} MB" for image in images)
        print(f"images with data: {used}", flush=True)
        for _ in range(options.rounds):
            for name in TOOLS:
                one_round(name, images, Path(folder), found[name])
    report(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
