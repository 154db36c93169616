"""A repository with random disks, a clock that is moved by hand, and a model of what every point must read as."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.repository.fakes import FixedKeyring
from tests.repository.writing import Change, point_of, read_disk, rows_of, store
from tests.tiers.faulty import FaultyTier
from vmcellar.repository.diskmap import DiskMap
from vmcellar.repository.points import DiskRecord, RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.tiers.base import Tier
from vmcellar.tiers.local import LocalTier

PIECE = 64 << 10
PIECES = 6
SIZE = PIECE * PIECES
START = 1_800_000_000.0
HOUR = 3600.0
DAY = 24 * HOUR


def piece(number: int) -> bytes:
    """One of the contents that disks are made of; 0 is a hole."""
    return bytes(PIECE) if number == 0 else random.Random(number).randbytes(PIECE)


@dataclass
class World:
    """One repository on one tier, several hosts (each with its own index cache), and the model."""

    folder: Path
    tier: LocalTier
    pool: ThreadPoolExecutor
    now: float = START
    model: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, pool: ThreadPoolExecutor) -> World:
        (folder / "hot").mkdir()
        return cls(folder, LocalTier(folder / "hot"), pool)

    def host(
        self,
        name: str = "a",
        tier: Tier | None = None,
        clock: Callable[[], float] | None = None,
        *,
        refresh: bool = True,
    ) -> Repository:
        """The repository as a process on a host sees it; without `refresh` it has not looked at the index yet."""
        made = Repository(
            tier or self.tier, FixedKeyring(), b"r" * 16, self.folder / f"cache-{name}", clock or (lambda: self.now)
        )
        if refresh:
            made.index.refresh()
        return made

    def faulty(self, fail_at: int | None = None, **options: object) -> FaultyTier:
        return FaultyTier(self.tier, fail_at, **options)  # type: ignore[arg-type]

    def back_up(
        self, host: Repository, changes: dict[int, int], parent: RestorePoint | None = None, *, lease: bool = True,
        vm: str = "web", before_commit: Callable[[], object] = lambda: None,
    ) -> RestorePoint:  # fmt: skip
        """A backup of `{piece of the disk: content}` on top of `parent`; the model is kept in step."""
        writes: list[Change] = [
            (place * PIECE, piece(number) if number else PIECE) for place, number in sorted(changes.items())
        ]
        image = bytearray(self.model[parent.id] if parent else bytes(SIZE))
        for place, number in changes.items():
            image[place * PIECE : (place + 1) * PIECE] = piece(number)
        with host.working_on(vm) if lease else nullcontext():
            host.index.refresh()
            packs = store(host, writes)
            base = host.map(parent.disks[0]) if parent else host.empty_map(SIZE)
            root, nodes = base.replace(rows_of(host, writes), SIZE)
            disk = DiskRecord("vda", SIZE, root.hex(), DiskMap(host, SIZE).level, "raw", "image-1")
            point = point_of(vm, disk, self.now, parent.id if parent else None)
            before_commit()
            self.model[point.id] = bytes(image)  # before it is there: a crash may come right after
            try:
                return host.commit(
                    {pack.id: pack.rows for pack in packs}, nodes, {"domain.xml": b"<domain/>"}, point, self.pool
                )
            except BaseException:
                if not self.tier.exists(f"points/{point.id}"):
                    del self.model[point.id]
                raise

    def check(self, name: str = "checker") -> list[RestorePoint]:
        """Every point that is there reads as its model says, also on a host that has never seen the repository."""
        fresh = self.host(name)
        try:
            points = fresh.points()
            for point in points:
                assert read_disk(fresh, point) == self.model[point.id], point.id
                for artifact in point.artifacts:
                    assert fresh.artifact(artifact) == b"<domain/>"
            return points
        finally:
            fresh.close()

    def keys(self, prefix: str) -> set[str]:
        return {key for key, _ in self.tier.list(prefix)}

    def packs(self) -> set[str]:
        return self.keys("data/") | self.keys("meta/")


def renamed(point: RestorePoint, **fields: object) -> RestorePoint:
    """The same point with other fields, for plans."""
    return replace(point, **fields)  # type: ignore[arg-type]
