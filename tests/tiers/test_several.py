"""A repository on three tiers, as a user meets it: hot a directory, warm a real Ceph pool, cold a real radosgw; and
cold in an archive class of the stand-in for Glacier.
"""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.glacier import Glacier
from tests.cli.conftest import Cli, cli, quick_cost
from tests.repository.writing import back_up
from tests.tiers.conftest import as_written
from vmcellar.config import load_config
from vmcellar.config.tiers import TierSettings
from vmcellar.repository.repository import Repository

__all__ = ["cli"]

MIB = 1 << 20
SIZE = 8 * MIB
POINTS_TIME = 1_800_000_000


@dataclass
class Tiered:
    """A repository with two points, its commands, and a clock for them."""

    cli: Cli
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    images: dict[str, bytes] = field(default_factory=dict)

    def make(self, tiers: dict[str, Any], placement: dict[str, Any]) -> None:
        document = {"tiers": tiers, "placement": placement, "key": {"file": "pass"}, "state": "state"}
        (self.folder / "vmcellar.yaml").write_text(yaml.safe_dump(document))
        made = self.cli("init")
        assert made.code == 0, made.err
        repository = Repository.open(load_config(self.folder / "vmcellar.yaml"))
        one, two, three = (random.Random(seed).randbytes(MIB) for seed in range(3))
        hole = bytes(MIB)
        with ThreadPoolExecutor(2) as pool:
            first = back_up(repository, pool, [(0, one), (4 * MIB, two)], SIZE)
            second = back_up(repository, pool, [(0, MIB), (2 * MIB, three), (4 * MIB, MIB)], SIZE, first)
        repository.close()
        self.images = {first.id: one + hole * 3 + two + hole * 3, second.id: hole * 2 + three + hole * 5}

    def after(self, days: float) -> None:
        """Commands run so many days after the points were made."""
        real = Repository.__init__

        def made(opened: Repository, *arguments: Any, **named: Any) -> None:
            real(opened, *arguments, **named)
            opened.clock = lambda: POINTS_TIME + days * 86400

        self.monkeypatch.setattr(Repository, "__init__", made)

    def packs(self) -> dict[str, int]:
        shown = json.loads(self.cli("tiers", "--json").out)
        return {tier["name"]: tier["packs"] for tier in shown["tiers"]}

    def restore_all(self) -> None:
        for point, image in self.images.items():
            shutil.rmtree(self.folder / point, ignore_errors=True)
            done = self.cli("restore", point, "--to", self.folder / point, "--format", "raw")
            assert done.code == 0, done.err
            assert (self.folder / point / "vda.raw").read_bytes() == image


@pytest.fixture
def tiered(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiered:
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "pass").chmod(0o600)
    return Tiered(cli, tmp_path, monkeypatch)


def test_packs_cool_from_a_directory_to_ceph_to_s3_and_the_hot_tier_is_lost(
    tiered: Tiered, s3_settings: TierSettings, ceph_settings: TierSettings
) -> None:
    warm, cold = as_written(ceph_settings), as_written(s3_settings)
    placement = {"hot": "7d", "warm": "30d", "cold": "rest"}
    tiered.make({"hot": "repo", "warm": warm, "cold": cold}, placement)
    every = tiered.packs()["hot"]
    for days, where in ((1, "hot"), (10, "warm"), (40, "cold")):
        tiered.after(days)
        moved = tiered.cli("tiers", "move")
        assert moved.code == 0, moved.err
        assert tiered.packs() == {name: every if name == where else 0 for name in ("hot", "warm", "cold")}
        tiered.restore_all()
        assert tiered.cli("verify", "--all", "--deep").code == 0
        assert "all" in tiered.cli("tiers", "move").out
    shutil.rmtree(tiered.folder / "repo")
    shutil.rmtree(tiered.folder / "state")
    document = {"tiers": {"hot": warm, "cold": cold}, "key": {"file": "pass"}, "state": "state"}
    (tiered.folder / "vmcellar.yaml").write_text(yaml.safe_dump(document))
    tiered.restore_all()
    assert "read only" in tiered.cli("pin", next(iter(tiered.images))).err
    assert tiered.cli("tiers", "promote", "--yes").code == 0
    assert tiered.cli("pin", next(iter(tiered.images))).code == 0


def test_two_copies_survive_either_remote_tier(
    tiered: Tiered, s3_settings: TierSettings, ceph_settings: TierSettings
) -> None:
    warm, cold = as_written(ceph_settings), as_written(s3_settings)
    tiered.make({"hot": "repo", "warm": warm, "cold": cold}, {"hot": "7d", "cold": "rest", "copies": 2})
    every = tiered.packs()["hot"]
    tiered.after(40)
    assert tiered.cli("tiers", "move").code == 0
    assert tiered.packs() == {"hot": 0, "warm": every, "cold": every}
    for lost in ("warm", "cold"):
        _empty(tiered, lost)
        assert "does not carry the mark" in tiered.cli("tiers", "move").err
        tiered.restore_all()
        assert tiered.cli("tiers", "add", lost).code == 0
        moved = json.loads(tiered.cli("tiers", "move", "--json").out)
        assert [move["copy"] for move in moved["moves"]] == [[lost]] * every
        assert tiered.packs() == {"hot": 0, "warm": every, "cold": every}
    assert tiered.cli("verify", "--all", "--deep").code == 0


def _empty(tiered: Tiered, name: str) -> None:
    """All objects of a tier go, as with a pool or a bucket that was made anew."""
    repository = Repository.open(load_config(tiered.folder / "vmcellar.yaml"))
    tier: Any = repository.tier
    place = tier.tier_named(name)
    for prefix in ("data/", "meta/", "index/", "points/", "keys/", "epochs/"):
        for key, _ in list(place.list(prefix)):
            place.delete(key)
    for key in ("config", "mirror"):
        place.delete(key)
    repository.close()


def test_a_damaged_hot_tier_is_rebuilt_from_object_storage(tiered: Tiered, s3_settings: TierSettings) -> None:
    tiered.make({"hot": "repo", "cold": as_written(s3_settings)}, {"hot": "7d", "cold": "rest", "copies": 2})
    tiered.after(1)
    assert tiered.cli("tiers", "move").code == 0
    whole = tiered.packs()
    assert whole["hot"] == whole["cold"] > 1
    for folder, damage in (("data", "gone"), ("data", "cut"), ("meta", "cut"), ("index", "gone"), ("points", "cut")):
        path = min(path for path in (tiered.folder / "repo" / folder).rglob("*") if path.is_file())
        content = path.read_bytes()
        path.unlink()
        if damage == "cut":
            path.write_bytes(content[: len(content) // 2])
    shutil.rmtree(tiered.folder / "state")  # what this host remembers of the index helps nobody
    assert tiered.cli("verify", "--all", "--deep").code == 1
    mended = tiered.cli("verify", "--all", "--deep", "--repair", "--from", "cold")
    assert mended.code == 0, mended.out + mended.err
    assert tiered.cli("tiers", "move").code == 0
    assert tiered.packs() == whole
    assert tiered.cli("verify", "--all", "--deep").code == 0
    tiered.restore_all()


def test_cold_is_an_archive(
    tiered: Tiered, glacier_server: Glacier, glacier_settings: TierSettings, tmp_path: Path
) -> None:
    """Packs go there proven by the digest beside them, come back only thawed, and keep the copy that is paid for."""
    cold = {**as_written(glacier_settings), "prices": "GLACIER"}
    tiered.make({"hot": "repo", "cold": cold}, {"hot": "7d", "cold": "rest"})
    every = tiered.packs()["hot"]
    tiered.after(40)
    moved = tiered.cli("tiers", "move")
    assert moved.code == 0, moved.out
    assert tiered.packs() == {"hot": 0, "cold": every}
    point = next(iter(tiered.images))
    refused = tiered.cli("restore", point, "--to", tmp_path / "no", "--format", "raw")
    assert refused.code == 1
    assert "vmcellar thaw" in refused.err
    assert not (tmp_path / "no").exists()
    verified = tiered.cli("verify", "--all", "--deep")
    assert verified.code == 0
    assert f"{every} packs lie in an archive class and were not read" in verified.out
    tiered.after(1)  # as if young points needed them
    held = json.loads(tiered.cli("tiers", "move", "--json").out)
    assert (len(held["held"]), held["moves"]) == (every, [])
    for each in tiered.images:
        thawed = tiered.cli("thaw", each, "--speed", "standard", "--days", "3", "--yes")
        assert thawed.code == 0, thawed.err
    glacier_server.advance(hours=13)
    tiered.restore_all()
    back = json.loads(tiered.cli("tiers", "move", "--json").out)
    assert [move["copy"] for move in back["moves"]] == [["hot"]] * every
    assert tiered.packs() == {"hot": every, "cold": every}, "the archived copy is paid for anyway"
    glacier_server.advance(days=10)
    tiered.restore_all()
    tiered.after(50)
    again = json.loads(tiered.cli("tiers", "move", "--json").out)
    assert [(move["copy"], move["drop"]) for move in again["moves"]] == [([], ["hot"])] * every
    assert tiered.packs() == {"hot": 0, "cold": every}
