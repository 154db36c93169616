"""A repository on S3 and on RADOS, as a user meets it: init, back up, list, verify, restore, prune, gc, doctor."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli, cli, quick_cost
from tests.repository.writing import back_up
from tests.tiers.conftest import as_written
from vmcellar.cli.checks.storage import check_storage
from vmcellar.config import Config, load_config
from vmcellar.config.tiers import TierSettings
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import gc

__all__ = ["cli"]

SIZE = 8 << 20
MIB = 1 << 20


@pytest.fixture(params=["s3", "ceph"])
def settings(request: pytest.FixtureRequest) -> TierSettings:
    """A place on each remote kind."""
    found: TierSettings = request.getfixturevalue(f"{request.param}_settings")
    return found


@pytest.fixture
def config(settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration as a user writes it."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "pass").chmod(0o600)
    hot = as_written(settings)
    document = {"tiers": {"hot": hot}, "key": {"file": "pass"}, "state": "state"}
    document["backups"] = [{"name": "nightly", "storage": settings.storage, "retention": {"last": 1}}]
    (tmp_path / "vmcellar.yaml").write_text(yaml.safe_dump(document))
    return load_config(tmp_path / "vmcellar.yaml")


def disks() -> list[bytes]:
    """Three MiB that no compressor makes smaller."""
    return [random.Random(seed).randbytes(MIB) for seed in range(3)]


def two_points(config: Config) -> tuple[str, str]:
    repository = Repository.open(config)
    one, two, three = disks()
    with ThreadPoolExecutor(2) as pool:
        first = back_up(repository, pool, [(0, one), (4 * MIB, two)], SIZE, time=1_700_000_000.5)
        second = back_up(repository, pool, [(0, MIB), (2 * MIB, three), (4 * MIB, MIB)], SIZE, first)
    repository.close()
    return first.id, second.id


def test_the_commands_work_there(cli: Cli, config: Config, tmp_path: Path) -> None:
    assert "valid" in cli("config", "check").out
    assert "not served" not in cli("config", "check").err
    made = cli("init")
    assert made.code == 0, made.err
    assert config.hot_tier().storage in made.out
    assert cli("init").code == 1
    first, second = two_points(config)
    assert [point["id"] for point in json.loads(cli("list", "--json").out)] == [first, second]
    assert cli("verify", "--all", "--deep").code == 0
    one, two, three = disks()
    hole = bytes(MIB)
    for point, image in ((first, one + hole * 3 + two + hole * 3), (second, hole * 2 + three + hole * 5)):
        result = cli("restore", point, "--to", tmp_path / point, "--format", "raw")
        assert result.code == 0, result.err
        assert (tmp_path / point / "vda.raw").read_bytes() == image
    assert cli("prune", "--keep-last", "1").code == 0
    assert json.loads(cli("gc", "--json").out)["marked"]
    days_later = Repository.open(config)
    days_later.clock = lambda: time.time() + 2 * 86400
    assert gc.collect(days_later).deleted
    days_later.close()
    assert [point["id"] for point in json.loads(cli("list", "--json").out)] == [second]
    assert cli("verify", "--all", "--deep").code == 0


def test_doctor_tries_the_place(cli: Cli, config: Config) -> None:
    assert cli("init").code == 0
    found = {finding.check: finding for finding in check_storage(config)}
    assert [finding.status for finding in found.values()] == ["ok"] * 3
    assert config.hot_tier().storage in found["tier hot"].detail


def test_another_host_sees_the_same_and_staging_stays_empty(cli: Cli, config: Config, tmp_path: Path) -> None:
    assert cli("init").code == 0
    points = two_points(config)
    other = config.model_copy(update={"state": tmp_path / "other-state"})
    repository = Repository.open(other)
    assert tuple(point.id for point in repository.points()) == points
    repository.close()
    staged = Repository.open(config).tier.staging_dir()
    assert list(staged.iterdir()) == []
