"""One entry per kind of tier: every test of the conformance suite runs against each."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import boto3
import pytest

from lab import glacier as lab_glacier
from lab.ceph import ACCESS, SECRET, Cluster
from lab.glacier import Glacier
from lab.require import requires
from vmcellar.config.tiers import TierSettings
from vmcellar.tiers.base import Tier
from vmcellar.tiers.cellar import CellarTier
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.registry import open_tier
from vmcellar.tiers.s3_client import make_client


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One small Ceph with an S3 gateway for all tests of a session."""
    requires("ceph")
    made = Cluster.start()
    try:
        made.make_pool("backups")
        yield made
    finally:
        made.stop()


@pytest.fixture
def s3_settings(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> TierSettings:
    """A bucket of its own on the gateway; parts are as small as S3 allows."""
    monkeypatch.setenv("LAB_ACCESS", ACCESS)
    monkeypatch.setenv("LAB_SECRET", SECRET)
    settings = TierSettings.model_validate(
        {
            "storage": f"s3://{new_name()}/vm-backups",
            "endpoint": cluster.endpoint,
            "access_key": {"environment": "LAB_ACCESS"},
            "secret_key": {"environment": "LAB_SECRET"},
            "part": "5 MiB",
        }
    )
    bucket = settings.storage.removeprefix("s3://").partition("/")[0]
    make_client(settings, "test").create_bucket(Bucket=bucket)
    return settings


@pytest.fixture(scope="session")
def glacier_server() -> Iterator[Glacier]:
    """One stand-in for Glacier for all tests of a session."""
    requires("glacier")
    made = Glacier.start()
    try:
        yield made
    finally:
        made.stop()


_one_session = functools.cache(boto3.session.Session)


@pytest.fixture
def glacier_settings(glacier_server: Glacier, monkeypatch: pytest.MonkeyPatch) -> TierSettings:
    """A bucket of its own there, packs in GLACIER at Amazon's prices."""
    monkeypatch.setenv("LAB_GLACIER_ACCESS", lab_glacier.ACCESS)
    monkeypatch.setenv("LAB_GLACIER_SECRET", lab_glacier.SECRET)
    monkeypatch.setattr("boto3.session.Session", _one_session)  # each new one reads all of S3's model again: 0.2 s
    bucket = new_name()
    glacier_server.make_bucket(bucket)
    return TierSettings.model_validate(
        {
            "storage": f"s3://{bucket}/vm-backups",
            "endpoint": glacier_server.endpoint,
            "access_key": {"environment": "LAB_GLACIER_ACCESS"},
            "secret_key": {"environment": "LAB_GLACIER_SECRET"},
            "storage_class": "GLACIER",
            "prices": "GLACIER",
        }
    )


@pytest.fixture
def ceph_settings(cluster: Cluster) -> TierSettings:
    """A namespace of its own; RADOS objects are small, so that many tests cut theirs into parts."""
    return TierSettings.model_validate(
        {"storage": f"ceph::backups/{new_name()}", "conf": cluster.conf, "object": "64 KiB", "timeout": "20s"}
    )


@pytest.fixture(params=["local", "s3", "ceph", "cellar"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of tier; `cellar` is three directories as one."""
    return str(request.param)


@pytest.fixture
def settings(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> TierSettings:
    """An empty place of each kind."""
    if kind in ("local", "cellar"):
        (tmp_path / "local").mkdir()
        return TierSettings(storage=str(tmp_path / "local"))
    found: TierSettings = request.getfixturevalue(f"{kind}_settings")
    return found


@pytest.fixture
def tier(kind: str, settings: TierSettings, tmp_path: Path) -> Tier:
    """An empty tier of each kind."""
    if kind == "cellar":
        return Scattered.make(tmp_path)
    return open_tier("hot", settings, tmp_path / "state")


class Scattered(CellarTier):
    """Moves each pack to another tier as soon as it is written, as a rebalance would; `local` is hot."""

    written = 0

    @classmethod
    def make(cls, folder: Path) -> Scattered:
        for name in ("warm", "cold"):
            (folder / name).mkdir()
        opened = {name: LocalTier(folder / name, name=name) for name in ("warm", "cold")}
        return cls(LocalTier(folder / "local"), {name: partial(opened.__getitem__, name) for name in opened})

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self._scatter(key)

    def adopt(self, path: Path, key: str) -> None:
        super().adopt(path, key)
        self._scatter(key)

    def _scatter(self, key: str) -> None:
        self.written += 1
        if key.startswith("data/") and self.written % 3:
            target = self.tier_named(self.names[self.written % 3])
            if not target.exists(key):
                target.put(key, self.hot.get(key))
            self.hot.delete(key)


def as_written(settings: TierSettings) -> dict[str, object]:
    """The section of a configuration file for these settings."""
    document: dict[str, object] = settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if "timeout" in document:
        document["timeout"] = f"{settings.timeout}s"
    return document


def new_name() -> str:
    return f"t{uuid4().hex[:12]}"


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A real, small file system of its own at `folder`."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small tmpfs")
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
    if made.returncode:
        pytest.skip("this host does not let us mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False, capture_output=True)  # a test may have unmounted it


@contextmanager
def lockable(folder: Path) -> Iterator[Path]:
    """`folder`, in which files may be made immutable; none is any more at the end."""
    probe = folder / ".immutable"
    probe.touch()
    try:
        if subprocess.run(["chattr", "+i", probe], check=False, capture_output=True).returncode:
            pytest.skip("this user or file system has no immutable files")
        yield folder
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", folder], check=False)
        probe.unlink(missing_ok=True)


def remount_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", folder], check=True)
