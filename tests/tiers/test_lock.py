"""What is locked stays: on a real S3 gateway in both modes, and in a directory whose files are immutable."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.waiting import wait_for
from tests.tiers.conftest import as_written, lockable, new_name
from vmcellar.cli.checks.lock import check_lock
from vmcellar.config.model import Config
from vmcellar.config.tiers import TierSettings
from vmcellar.errors import PermanentError, UsageError
from vmcellar.tiers.base import LockedError, NotFoundError
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.retry import Patience
from vmcellar.tiers.s3 import S3Tier
from vmcellar.tiers.s3_client import make_client

PACK = "data/aa/aaaa"


def versions(tier: S3Tier) -> list[str]:
    """Everything that the bucket holds, seen or not."""
    found = tier.client.list_object_versions(Bucket=tier.bucket)
    return [str(each["Key"]) for kind in ("Versions", "DeleteMarkers") for each in found.get(kind, [])]


def locking(settings: TierSettings, mode: str, keep: str, folder: Path) -> S3Tier:
    """A tier in a bucket of its own that has object lock."""
    bucket = new_name()
    make_client(settings, "test").create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    document = {**as_written(settings), "storage": f"s3://{bucket}/vm-backups", "lock": {"mode": mode, "keep": keep}}
    made = TierSettings.model_validate(document)
    return S3Tier(made, staging=folder / "staging", patience=Patience(attempts=3, pause=0))


def adopted(tier: S3Tier, folder: Path, key: str) -> bytes:
    """A pack of three parts."""
    data = os.urandom(1 << 20) * 12
    (folder / "pack").write_bytes(data)
    tier.adopt(folder / "pack", key)
    return data


@pytest.mark.parametrize("mode", ["governance", "compliance"])
def test_s3_keeps_what_is_locked_and_lets_it_go_afterwards(
    s3_settings: TierSettings, mode: str, tmp_path: Path
) -> None:
    tier = locking(s3_settings, mode, "1h", tmp_path)
    data = adopted(tier, tmp_path, PACK)
    tier.put("meta/bbbb", b"node")
    tier.put("leases/one", b"lease")
    tier.delete("leases/one")  # nothing is left of what is not locked, though the bucket keeps versions
    assert sorted(versions(tier)) == [f"vm-backups/{PACK}", "vm-backups/meta/bbbb"]
    until = tier.locked_until([PACK, "meta/bbbb", "meta/cccc"])
    assert sorted(until) == [PACK, "meta/bbbb"]
    assert all(abs(each - time.time() - 3600) < 600 for each in until.values())
    for key in until:
        with pytest.raises(LockedError, match=f"{key} is locked until"):
            tier.delete(key)
    tier.lock_until(until, until[PACK] + 1000)
    tier.lock_until(until, until[PACK] - 1000)  # never shorter
    assert tier.locked_until([PACK])[PACK] == pytest.approx(until[PACK] + 1000, abs=1)
    assert tier.read(PACK, 0, len(data)) == data


def test_s3_lets_go_when_the_time_is_over(s3_settings: TierSettings, tmp_path: Path) -> None:
    tier = locking(s3_settings, "compliance", "1s", tmp_path)
    tier.put("meta/bbbb", b"node")

    def gone() -> bool:
        try:
            tier.delete("meta/bbbb")
        except LockedError:
            return False
        return True

    wait_for(gone, "the lock to end", seconds=60)
    assert versions(tier) == []


def test_what_is_deleted_or_written_over_on_top_of_a_lock_is_found_and_comes_back(
    s3_settings: TierSettings, tmp_path: Path
) -> None:
    tier = locking(s3_settings, "compliance", "1h", tmp_path)
    for key in (PACK, "meta/bbbb", "keys/one", "config"):
        tier.put(key, key.encode())
    assert tier.hidden() == []
    tier.client.delete_object(**tier.place(PACK))
    tier.client.put_object(**tier.place("meta/bbbb"), Body=b"ransom")
    tier.client.delete_object(**tier.place("meta/bbbb"))
    tier.client.put_object(**tier.place("meta/bbbb"), Body=b"ransom")
    tier.delete("keys/one")  # as `vmcellar key remove` does
    assert not tier.exists(PACK)
    assert not tier.exists("keys/one")
    found = check_lock("lock of hot", lambda: tier)
    assert (found.status, found.remedy) == ("failed", "vmcellar tiers undelete hot")
    assert sorted(tier.hidden()) == [PACK, "meta/bbbb"]
    assert sorted(tier.hidden(keys=True)) == [PACK, "keys/one", "meta/bbbb"]
    tier.undelete(tier.hidden())
    assert tier.hidden() == []
    assert (tier.get(PACK), tier.get("meta/bbbb")) == (PACK.encode(), b"meta/bbbb")
    with pytest.raises(NotFoundError):
        tier.get("keys/one")


@pytest.mark.parametrize(("mode", "holds"), [("compliance", True), ("governance", False)])
def test_the_doctor_attacks_a_probe(s3_settings: TierSettings, mode: str, holds: bool, tmp_path: Path) -> None:
    tier = locking(s3_settings, mode, "1h", tmp_path)
    found = check_lock("lock of hot", lambda: tier)
    assert found.status == ("ok" if holds else "failed"), found
    assert "bypass" in found.detail  # of radosgw, the owner of a bucket may always bypass governance


def test_a_bucket_without_object_lock_is_named(s3_settings: TierSettings, tmp_path: Path) -> None:
    document: dict[str, Any] = {**as_written(s3_settings), "lock": {"mode": "compliance", "keep": "1h"}}
    with pytest.raises(PermanentError, match="no object lock") as caught:
        S3Tier(TierSettings.model_validate(document), staging=tmp_path)
    assert "--object-lock-enabled-for-bucket" in caught.value.hint


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory whose files may be immutable, and are not any more afterwards."""
    with lockable(tmp_path) as made:
        yield made


def test_an_immutable_directory(folder: Path) -> None:
    now = 1000.0
    tier = LocalTier(folder, lock_keep=3600.0, clock=lambda: now)
    for key in (PACK, "keys/one", "points/one", "leases/one"):
        tier.put(key, key.encode())
    assert tier.locked_until([PACK, "points/one", "data/bb/bbbb"]) == {PACK: 4600.0, "points/one": 0.0}
    tier.lock_until(["points/one"], 2000.0)
    for break_it in ((folder / PACK).unlink, lambda: (folder / PACK).write_bytes(b""), lambda: tier.delete(PACK)):
        with pytest.raises((PermissionError, LockedError)):
            break_it()
    assert tier.attack(PACK) == ""
    assert tier.attack("leases/one") == "it was overwritten"
    tier.delete("keys/one")
    tier.lock_until([PACK], 9000.0)
    tier.lock_until([PACK], 5000.0)
    now = 8999.0
    tier.delete("points/one")
    with pytest.raises(LockedError, match=f"{PACK} is locked until 1970-01-01T0"):
        tier.delete(PACK)
    (folder / "whole").write_bytes(b"whole")
    tier.replace(folder / "whole", PACK)  # a repair: its caller has proven what it puts there
    assert tier.get(PACK) == b"whole"
    assert tier.locked_until([PACK]) == {PACK: 8999.0 + 3600.0}
    now = 13_000.0
    tier.delete(PACK)
    assert not tier.exists(PACK)


def test_the_doctor_says_whether_a_directory_holds(folder: Path) -> None:
    found = check_lock("lock of hot", lambda: LocalTier(folder, lock_keep=3600.0))
    assert found.status == "ok"
    assert "root can take the flag off" in found.detail
    assert check_lock("lock of hot", lambda: LocalTier(folder, lock_keep=3600.0)).status == "ok"  # beside an old probe


def test_a_file_system_without_the_flag_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flags(*_: object) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr("fcntl.ioctl", no_flags)
    tier = LocalTier(tmp_path, lock_keep=3600.0)
    with pytest.raises(PermanentError, match="cannot be made immutable: its file system does not have it"):
        tier.put(PACK, b"pack")
    assert not tier.exists(PACK)


def test_keep_is_the_shortest_retention_where_it_is_left_out() -> None:
    def config(*retentions: object) -> Config:
        jobs = [
            {"name": f"job{number}", "domains": ["*"], "retention": retention}
            for number, retention in enumerate(retentions)
        ]
        tiers = {"hot": {"storage": "/srv/x", "lock": {"mode": "immutable"}}}
        return Config.model_validate({"tiers": tiers, "backups": jobs})

    lock = config("30d", "14d", {"daily": 7}).hot_tier().lock
    assert lock is not None
    assert lock.keep == 14 * 86400
    with pytest.raises(UsageError, match=r"tiers\.hot\.lock\.keep is missing"):
        config({"daily": 7}).hot_tier()
