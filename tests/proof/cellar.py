"""A whole vmcellar of one test: configuration, repository and engine, and what the proofs ask of them.

References come from `lab.reference`, which shares no code with the engine; comparisons are of whole disks, byte for
byte (pitfall 28).
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import libvirt
import yaml

from lab import reference
from lab.guest import LabGuest
from vmcellar.backup import pipeline, stages
from vmcellar.backup.model import BackupRequest, PointSummary, RunHandle
from vmcellar.config.load import load_config
from vmcellar.crypto import passphrase
from vmcellar.crypto.passphrase import Argon2Cost
from vmcellar.engine import Engine
from vmcellar.progress import CancelToken
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.sources.libvirt_source import LibvirtSource

MIB = 1 << 20
RESERVE = 8 * MIB
"""Scratch space that a proof's backup wants, in place of the product's 1 GiB: the disks here are small."""

Disks = Mapping[str, Path]
"""Raw images by target."""


@dataclass
class Cellar:
    """One repository below `base`, as one configuration file says; `engine` is one process's view of it."""

    base: Path
    settings: dict[str, Any] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        """Write the configuration and make the repository."""
        self.base.mkdir(parents=True, exist_ok=True)
        self.base.chmod(0o755)
        (self.base / "passphrase").write_text("a passphrase of a test")
        document: dict[str, Any] = {
            "tiers": {"hot": str(self.base / "repository")},
            "key": {"file": str(self.base / "passphrase")},
            "state": str(self.base / "state"),
            "scratch": str(self.base / "scratch"),
            "landing": {"dir": str(self.base / "landing"), "budget": 256 * MIB},
        }
        for name, value in self.settings.items():
            document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
        self.file = self.base / "vmcellar.yaml"
        self.file.write_text(yaml.safe_dump(document))
        self.config = load_config(self.file)
        if not (self.base / "repository" / "config").exists():
            with patch.object(passphrase, "Argon2Cost", _cheap):
                Repository.init(self.config)
        self.engine = self.new_engine()

    def with_settings(self, **settings: Any) -> Cellar:
        """The same repository and state under another configuration."""
        return Cellar(self.base, {**self.settings, **settings}, self._numbers)

    def new_engine(self) -> Engine:
        """What a new process would open."""
        remote = self.config.libvirt.remote
        source = LibvirtSource(self.config.libvirt.uri, self.config.scratch, RESERVE, remote=remote)
        return Engine(self.config, Repository.open(self.config), source)

    # Backing up

    def backup(self, guest: LabGuest, **request: Any) -> PointSummary:
        """Back the guest up with a new engine, as a new process would."""
        self.engine = self.new_engine()
        return pipeline.run(self.engine, BackupRequest(guest.name, **request))

    def backup_with_reference(self, guest: LabGuest, **request: Any) -> tuple[PointSummary, Disks]:
        """Back up, and copy the instant out of the live job with qemu-img before the engine reads a byte.

        There is none (an empty mapping) of a run that needs no job, since all of it had landed in an earlier process.
        """
        found: Disks = {}

        def copy() -> None:
            nonlocal found
            if job_runs(guest):
                found = reference.of_job(guest.domain, self.folder())

        with at_instant(copy):
            summary = self.backup(guest, **request)
        return summary, found

    def folder(self) -> Path:
        """A new folder for references or restores."""
        path = self.base / f"folder-{next(self._numbers)}"
        path.mkdir()
        return path

    def reference(self, guest: LabGuest) -> Disks:
        """The disks as they are now, out of QEMU or of the images of a guest that is off."""
        return reference.of_guest(guest, self.folder())

    # What came of it

    def points(self, guest: LabGuest) -> list[RestorePoint]:
        """The guest's points, oldest first, as a new process sees them."""
        return list(Repository.open(self.config).points_of(guest.name))

    def point(self, summary: PointSummary) -> RestorePoint:
        """One point, as a new process sees it."""
        return Repository.open(self.config).point(summary.id)

    def restore(self, point_id: str, *, image_format: str = "raw") -> dict[str, Path]:
        """Restore a point into a new folder; the images by target."""
        repository = Repository.open(self.config)
        target = RestoreTarget(self.folder() / "restored", image_format)  # type: ignore[arg-type]  # a format as text
        report = restore_point(repository, repository.point(point_id), target)
        return {disk.target: disk.path for disk in report.disks}

    def assert_restores(self, point_id: str, expected: Disks, *, image_format: str = "raw") -> None:
        """Every disk of the point restores to the size and every byte of its reference."""
        images = self.restore(point_id, image_format=image_format)
        problems = reference.mismatches(dict(expected), images, image_format)
        assert problems == [], f"{point_id}: {problems}"
        shutil.rmtree(next(iter(images.values())).parent)

    def assert_nothing_left(self, guest: LabGuest) -> None:
        """No job, no scratch file, no landing, no staged pack, no run, no checkpoint that is in no point."""
        self.assert_let_go(guest)
        if guest.domain.isActive():
            recorded = {point.checkpoint for point in self.points(guest)}
            own = f"vmcellar-{self.engine.repository.id.hex()[:8]}-"
            orphans = {name for name in checkpoints(guest) if name.startswith(own)} - recorded
            assert orphans == set(), "an orphan checkpoint stays"

    def assert_let_go(self, guest: LabGuest) -> None:
        """The same after a failed backup, whose orphan checkpoint the next one removes."""
        assert not job_runs(guest), "a backup job still runs"
        assert self.leftovers() == []

    def leftovers(self) -> list[Path]:
        """What a backup may have below its folders only while it runs."""
        staging = Repository.open(self.config).tier.staging_dir()
        places = [(self.config.scratch, "*"), (self.config.state, "runs/*/*")]
        places += [(folder, "**/*") for folder in (self.config.landing.dir, staging)]
        return [path for folder, pattern in places for path in folder.glob(pattern) if _is_left(path, folder)]


def _cheap(*given: int) -> Argon2Cost:
    """A key slot that opens in a millisecond: a proof opens its repository a hundred times."""
    return Argon2Cost(*(given or (64, 1, 1)))


def _is_left(path: Path, folder: Path) -> bool:
    """Landing and staging keep one empty folder per state directory."""
    return not (path.is_dir() and path.parent == folder and not any(path.iterdir()))


@contextmanager
def at_instant(act: Any) -> Iterator[None]:
    """Call `act` once, after the instant is held and planned, before anything of it is exported."""
    snapshot = stages.snapshot

    def then_act(engine: Engine, request: BackupRequest, cancel: CancelToken) -> RunHandle:
        handle = snapshot(engine, request, cancel)
        act()
        return handle

    with patch.object(stages, "snapshot", then_act):
        yield


def job_runs(guest: LabGuest) -> bool:
    """Whether libvirt knows a backup job of the guest."""
    try:
        guest.domain.backupGetXMLDesc()
    except libvirt.libvirtError:
        return False
    return True


def checkpoints(guest: LabGuest) -> list[str]:
    """The names of all checkpoints on the guest, parents first."""
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
    return [checkpoint.getName() for checkpoint in guest.domain.listAllCheckpoints(flags)]
