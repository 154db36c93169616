"""A repository on the stand-in for Glacier whose packs a test puts into archive classes."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab.glacier import Glacier
from tests.repository.writing import back_up
from tests.tiers.conftest import as_written
from vmcellar.config import load_config
from vmcellar.config.tiers import TierSettings
from vmcellar.repository.repository import Repository
from vmcellar.restore.plan import make_plan
from vmcellar.tiers.s3 import S3Tier
from vmcellar.upkeep.rebalance import rebalance
from vmcellar.upkeep.rules import rules_of

MIB = 1 << 20
SIZE = 8 * MIB


@dataclass
class Frozen:
    """A repository with two points, and the server that can archive what it holds."""

    server: Glacier
    repository: Repository
    config: Path
    points: list[str]
    disks: list[bytes]

    @property
    def tier(self) -> S3Tier:
        assert isinstance(self.repository.tier, S3Tier)
        return self.repository.tier

    @property
    def packs(self) -> list[str]:
        return [key for key, _ in self.tier.list("data/")]

    def needed(self, point: str) -> list[str]:
        """The packs of disk bytes that a restore of the point reads."""
        plan = make_plan(self.repository, self.repository.point(point))
        return sorted(key for key in plan.keys if key.startswith("data/"))

    def archive(self, storage_class: str = "GLACIER", keys: list[str] | None = None) -> None:
        """What a lifecycle rule does: the same object in another class."""
        for key in self.packs if keys is None else keys:
            place = self.tier.place(key)
            self.tier.client.copy_object(
                **place, CopySource=place, StorageClass=storage_class, MetadataDirective="COPY"
            )

    def requests(self) -> list[dict[str, object]]:
        return [request for request in self.server.requests if request["bucket"] == self.tier.bucket]


def make_frozen(server: Glacier, settings: TierSettings, folder: Path) -> Frozen:
    """Two points of one disk, readable at once; the configuration as a user writes it, with Amazon's prices."""
    (folder / "pass").write_text("correct horse\n")
    (folder / "pass").chmod(0o600)
    hot = {name: value for name, value in as_written(settings).items() if name != "storage_class"}
    document = {"tiers": {"hot": {**hot, "prices": "GLACIER"}}, "key": {"file": "pass"}, "state": "state"}
    (folder / "vmcellar.yaml").write_text(yaml.safe_dump(document))
    repository = Repository.init(load_config(folder / "vmcellar.yaml"))
    repository.clock = lambda: server.now
    one, two, three = (random.Random(seed).randbytes(MIB) for seed in range(3))
    with ThreadPoolExecutor(2) as pool:
        first = back_up(repository, pool, [(0, one), (4 * MIB, two)], SIZE)
        second = back_up(repository, pool, [(0, MIB), (2 * MIB, three)], SIZE, first)
    hole = bytes(MIB)
    disks = [one + hole * 3 + two + hole * 3, hole * 2 + three + hole + two + hole * 3]
    return Frozen(server, repository, folder / "vmcellar.yaml", [first.id, second.id], disks)


@dataclass
class Tiered:
    """A point of ten days ago that the rules have moved from a local hot tier to GLACIER."""

    server: Glacier
    folder: Path
    point: str
    disk: bytes

    @property
    def hot_packs(self) -> int:
        return sum(path.is_file() for path in (self.folder / "repo" / "data").rglob("*"))


def make_tiered(server: Glacier, settings: TierSettings, folder: Path) -> Tiered:
    """The configuration as a user writes it; the packs were moved by its rules."""
    (folder / "pass").write_text("correct horse\n")
    (folder / "pass").chmod(0o600)
    tiers = {"hot": "repo", "cold": as_written(settings)}
    document = {"tiers": tiers, "placement": {"hot": "7d", "cold": "rest"}, "key": {"file": "pass"}, "state": "state"}
    (folder / "vmcellar.yaml").write_text(yaml.safe_dump(document))
    config = load_config(folder / "vmcellar.yaml")
    repository = Repository.init(config)
    data = random.Random(1).randbytes(MIB)
    with ThreadPoolExecutor(2) as pool:
        point = back_up(repository, pool, [(0, data)], SIZE, time=time.time() - 10 * 86400)
    assert rebalance(repository, rules_of(config)).ok
    repository.close()
    return Tiered(server, folder, point.id, data + bytes(SIZE - MIB))
