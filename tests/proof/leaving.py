"""What the proofs of leaving out share: a guest's tree, who tells where its files lie, and what a point must hold."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.disks import MIB
from lab.guest import LabGuest
from lab.ossystem import START, debugfs
from tests.proof.cellar import Cellar, Disks
from vmcellar.backup.model import PointSummary
from vmcellar.guestfiles.places import Answer, Question
from vmcellar.progress import CancelToken
from vmcellar.repository import left_out
from vmcellar.repository.layout import GRID
from vmcellar.repository.repository import Repository

SIZE = 96 * MIB
BLOCK = 4096
LOGS = ("/var/log",)
SYSLOG, JOURNAL, OLD = "/var/log/syslog", "/var/log/journal/system", "/var/log/old"


def noise(seed: int, length: int = 3 * MIB + 100) -> bytes:
    """Bytes that no compressor and no deduplication makes smaller."""
    return random.Random(seed).randbytes(length)


def fill(folder: Path) -> Path:
    """The files of the guest: an operating system that libguestfs knows, logs, and data that is kept."""
    for name in ("etc", "bin", "sbin", "usr", "var/log/journal", "srv", "boot", "root"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/fstab").write_text("/dev/vda1 / ext4 defaults 0 1\n")
    (folder / "etc/os-release").write_text('ID=debian\nNAME="Debian"\nVERSION_ID="12"\n')
    (folder / "etc/debian_version").write_text("12.0\n")
    for number, name in enumerate((SYSLOG, JOURNAL, OLD, "/srv/data", "/srv/more")):
        (folder / name[1:]).write_bytes(noise(number))
    (folder / "var/log/small").write_bytes(noise(90, 5000))
    (folder / "srv/shared").write_bytes(noise(91, 2 * MIB))
    os.link(folder / "srv/shared", folder / "var/log/shared")
    return folder


def blocks_of(image: Path, paths: tuple[str, ...]) -> set[int]:
    """The blocks of these files, as debugfs tells."""
    told = debugfs(image, *(f'blocks "{path}"' for path in paths)) if paths else ""
    return {int(word) for line in told.splitlines() if not line.startswith("debugfs") for word in line.split()}


@dataclass
class Debugfs:
    """Tells of `files` in place of the appliance, for the tests of what comes after."""

    model: Path
    files: tuple[str, ...] = ()
    asked: list[Question] = field(default_factory=list)

    def __call__(self, question: Question, _: CancelToken) -> Answer:
        """In place of `leaving._ask`."""
        self.asked.append(question)
        extents = tuple((START + block * BLOCK, BLOCK) for block in sorted(blocks_of(self.model, self.files)))
        return Answer({"vda": extents}, len(self.files), ())


def back_up(cellar: Cellar, guest: LabGuest, paths: tuple[str, ...] = LOGS, **more: Any) -> tuple[PointSummary, Disks]:
    """A backup that leaves out `paths`, and the instant as another program reads it."""
    return cellar.backup_with_reference(guest, exclude_paths=paths, **more)


def assert_point(cellar: Cellar, made: PointSummary, expected: Disks, logs: tuple[str, ...]) -> bytes:
    """The restored disk is the instant's but for its record's ranges, which are zero, and lie in `logs` alone.

    Gives the restored disk.
    """
    repository = Repository.open(cellar.config)
    record = left_out.of_point(repository, repository.point(made.id))
    assert record is not None
    ranges = record.ranges("vda")
    inside = blocks_of(expected["vda"], logs)
    out = {(offset - START) // BLOCK + at for offset, length in ranges for at in range(length // BLOCK)}
    assert out <= inside, "something is left out that is in none of the files"
    assert len(out) * BLOCK >= len(inside) * BLOCK - 2 * GRID * len(logs), "what could be left out was"
    wanted = bytearray(expected["vda"].read_bytes())
    for offset, length in ranges:
        wanted[offset : offset + length] = bytes(length)
    restored = cellar.restore(made.id)["vda"].read_bytes()
    assert restored == wanted, "a byte that is not left out is not the instant's"
    return restored
