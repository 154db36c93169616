"""A small repository with two VMs of image files, and the check that nothing of it was lost; every call is one process.

All state lies in one folder, so that a trial is a copy of it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.crypto.store import CHEAP
from tests.faults.imagesource import ImageReader, ImageSource
from tests.repository.writing import read_map
from vmcellar.backup import clean_check, export, pipeline, recover
from vmcellar.backup import place as placing
from vmcellar.backup.model import BackupRequest, PointSummary
from vmcellar.backup.rundir import COMMITTED, REQUEST_FILE
from vmcellar.config.model import Config
from vmcellar.crypto import passphrase
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.engine import Engine
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.tiers import reserve

MIB = 1 << 20
PASSPHRASE = "correct horse battery staple"
PIECE = 64 << 10


def stand_ins() -> list[tuple[object, str, object]]:
    """What a process that uses a Cellar replaces: readers of image files, and keys that cost nothing to derive."""
    made = passphrase.Argon2Cost
    return [
        (export, "ExportReader", ImageReader),
        (clean_check, "ExportReader", ImageReader),
        (passphrase, "Argon2Cost", lambda *costs: made(*costs) if costs else CHEAP),
        (reserve, "BYTES", 64 << 10),  # each trial copies it
        (pipeline, "READING", 1),
        (pipeline, "AFTER_EXPORT_WORKERS", 1),
        (placing, "PLACED_AT_ONCE", 1),  # steps in the same order every time
    ]


def prepare_process() -> None:
    """Put them in for good. Python finds its folder for temporary files now: its probes are no steps of ours."""
    tempfile.gettempdir()
    for module, name, value in stand_ins():
        setattr(module, name, value)


def warm_up(folder: Path) -> None:
    """One whole life of a repository, so that what is made on first use is there before the forks."""
    cellar = Cellar(folder)
    cellar.make()
    for seed in (1, 2):
        cellar.back_up_and_note("web", seed)
    cellar.check()
    gc.collect()
    gc.freeze()  # else each collection in a child copies every page that it looks at
    assert threading.active_count() == 1, threading.enumerate()


def image(seed: int, pieces: int = 10) -> bytes:
    """A disk of random, repeated and zero pieces; disks of near seeds have most pieces in common."""
    parts = []
    for place in range(pieces):
        dice = random.Random(f"{place} {seed if place % 5 == seed % 5 else 0}")
        kind = dice.randrange(4)
        parts.append(bytes(PIECE) if kind == 0 else dice.randbytes(PIECE) if kind < 3 else dice.randbytes(16) * 4096)
    return b"".join(parts)


@dataclass(frozen=True)
class Cellar:
    """The folder of one trial. `recipient`: its repository is in recipient mode, and checks use the private key."""

    folder: Path
    recipient: bool = False

    @property
    def hot(self) -> Path:
        return self.folder / "hot"

    @property
    def source(self) -> ImageSource:
        return ImageSource(self.folder / "vms")

    @property
    def config(self) -> Config:
        return self._config(self.folder / "state")

    def _config(self, state: Path) -> Config:
        return Config.model_validate(
            {
                **self._tiers(),
                "key": {"file": str(self.folder / "passphrase")},
                "state": str(state),
                "scratch": str(self.folder / "scratch"),
                "landing": {"dir": str(self.folder / "landing"), "budget": "8 MiB"},
                "limits": {"segment": MIB, "workers": 1, "connections": 1, "sample": 0},
            }
        )

    def _tiers(self) -> dict[str, object]:
        """Hot, and the others once their folders are there."""
        others = [name for name in ("warm", "cold") if (self.folder / name).exists()]
        tiers = {name: str(self.folder / name) for name in ("hot", *others)}
        if not others:
            return {"tiers": tiers}
        copies = 2 if (self.folder / "copies").exists() else 1
        return {"tiers": tiers, "placement": {"hot": "7d", "warm": "30d", "cold": "rest", "copies": copies}}

    def make_folder(self) -> None:
        """All but the repository."""
        (self.folder / "vms").mkdir()
        (self.folder / "passphrase").write_text(PASSPHRASE)
        self._note({})

    def make(self) -> None:
        """A repository without points."""
        self.make_folder()
        keys = []
        if self.recipient:
            private = PrivateKey.generate()
            (self.folder / "private").write_bytes(private.to_file(PASSPHRASE.encode(), CHEAP))
            keys = [private.public]
        Repository.init(self.config, keys).close()

    def private(self) -> PrivateKey | None:
        """The private key that checks use."""
        if not self.recipient:
            return None
        return PrivateKey.from_file("private", (self.folder / "private").read_bytes(), PASSPHRASE.encode())

    def _models(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "models.json").read_text())
        return found

    def _note(self, models: dict[str, str]) -> None:
        (self.folder / "models.json").write_text(json.dumps(models))

    def write(self, vm: str, seed: int) -> None:
        """The VM's disks from now on; a point that is not in the model yet must hold these. "web" has two."""
        self.source.write(vm, "vda", image(seed))
        if vm == "web":
            self.source.write(vm, "vdb", image(5 * seed, 2))

    def engine(self) -> Engine:
        return Engine(self.config, Repository.open(self.config), self.source)

    def open(self) -> Repository:
        """The repository as the commands of this host open it."""
        return Repository.open(self.config)

    def back_up(self, vm: str, mode: str = "auto") -> PointSummary:
        engine = self.engine()
        try:
            return pipeline.run(engine, BackupRequest(vm, mode))  # type: ignore[arg-type]  # a mode as text
        finally:
            engine.cpu.shutdown()
            engine.repository.close()

    def back_up_and_note(self, vm: str, seed: int) -> str:
        """A point that every check from now on asks for."""
        return self.noting(vm, seed, lambda: self.back_up(vm)).id

    def noting(self, vm: str, seed: int, back_up: Callable[[], PointSummary]) -> PointSummary:
        """The same, with a backup as the caller makes it."""
        self.write(vm, seed)
        made = back_up()
        images = self.folder / "models" / made.id
        shutil.copytree(self.folder / "vms", images)
        self._note({**self._models(), made.id: vm})
        return made

    def forget(self, *points: str) -> None:
        """These may be gone from now on."""
        self._note({name: vm for name, vm in self._models().items() if name not in points})

    def disks_of(self, point: RestorePoint) -> dict[str, bytes]:
        """What the model says; for a point that it does not know, what the VM has now."""
        noted = self.folder / "models" / point.id
        return ImageSource(noted if noted.exists() else self.folder / "vms").disks_of(point.vm)

    def check(self) -> list[RestorePoint]:
        """Every point restores equal, none of the noted is lost, and a scrub finds nothing: with the index cache of
        the host that died, and on a host that has never seen the repository.
        """
        new = self.folder / "state-new"
        shutil.rmtree(new, ignore_errors=True)
        points: list[RestorePoint] = []
        for state in (self.folder / "state", new):
            repository = Repository.open(self._config(state), self.private())
            try:
                points = repository.points()
                lost = self._models().keys() - {point.id for point in points}
                assert not lost, f"lost: {lost}"
                for point in points:
                    self.check_point(repository, point)
                if state == new:
                    report = verify_all(repository, deep=True)
                    assert report.ok, report.findings
            finally:
                repository.close()
        return points

    def check_point(self, repository: Repository, point: RestorePoint) -> None:
        """One point restores equal to what the model, or else the VM, has."""
        expected = self.disks_of(point)
        assert {disk.target for disk in point.disks} == expected.keys(), point
        for disk in point.disks:
            assert read_map(repository, disk) == expected[disk.target], f"{point.id} {disk.target} differs"
        for artifact in point.artifacts:
            assert repository.artifact(artifact) == b"<domain><name>%s</name></domain>" % point.vm.encode()

    def check_backed_up(self, vm: str) -> None:
        """A backup has ended: its point holds what the VM has, and nothing is held or half done."""
        points = [point for point in self.check() if point.vm == vm]
        noted = self.folder / "models" / points[-1].id
        assert not noted.exists(), "no new point"
        assert self.source.held() == []
        engine = self.engine()
        left = engine.run_directories()
        for directory in left:  # those of nobody go an hour later; what could not be tidied away, at the next run
            assert not directory.has(REQUEST_FILE) or directory.has(COMMITTED), directory
        for directory in left:
            os.utime(directory.path, (0, 0))
        recover.recover(engine)
        assert engine.run_directories() == []
        assert engine.landing.runs() == []
        engine.repository.close()
