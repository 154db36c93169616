"""What a directory really lies on, from trees made like sysfs."""

from __future__ import annotations

import os
from pathlib import Path

from vmcellar.tiers.device import Device, device_of
from vmcellar.tiers.local import LocalTier


def sysfs(folder: Path, disks: dict[str, str]) -> Path:
    """A tree of whole disks: name -> what `queue/rotational` says."""
    for name, rotational in disks.items():
        queue = folder / "devices" / name / "queue"
        queue.mkdir(parents=True)
        (queue / "rotational").write_text(f"{rotational}\n")
    (folder / "dev" / "block").mkdir(parents=True)
    return folder


def is_device_of(root: Path, path: Path, device: str) -> None:
    number = path.stat().st_dev
    (root / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}").symlink_to(root / "devices" / device)


def mounts(folder: Path, source: str, kind: str) -> Path:
    file = folder / "mountinfo"
    file.write_text(f"1 0 8:1 / / rw - overlay root rw\n2 1 8:2 / {folder} rw,noatime shared:1 - {kind} {source} rw\n")
    return file


def test_a_partition_of_a_rotating_disk(tmp_path: Path) -> None:
    root = sysfs(tmp_path / "sys", {"sda": "1"})
    (root / "devices" / "sda" / "sda1").mkdir()
    (root / "devices" / "sda" / "sda1" / "partition").write_text("1\n")
    is_device_of(root, tmp_path, "sda/sda1")
    found = device_of(tmp_path, root, mounts(tmp_path, "/dev/sda1", "ext4"))
    assert found == Device("/dev/sda1", "ext4", True)
    assert str(found) == "ext4 on /dev/sda1, rotating disk"


def test_lvm_over_raid_names_the_level_and_one_rotating_disk_is_enough(tmp_path: Path) -> None:
    root = sysfs(tmp_path / "sys", {"sda": "0", "sdb": "1"})
    for device, slaves in (("md0", ("sda", "sdb")), ("dm-0", ("md0",))):
        for slave in slaves:
            (root / "devices" / device / "slaves").mkdir(parents=True, exist_ok=True)
            (root / "devices" / device / "slaves" / slave).symlink_to(root / "devices" / slave)
    (root / "devices" / "md0" / "md").mkdir()
    (root / "devices" / "md0" / "md" / "level").write_text("raid1\n")
    is_device_of(root, tmp_path, "dm-0")
    found = device_of(tmp_path, root, mounts(tmp_path, "/dev/mapper/vg-backup", "xfs"))
    assert str(found) == "xfs on /dev/mapper/vg-backup, rotating disk, RAID1"
    (root / "devices" / "sdb" / "queue" / "rotational").write_text("0\n")
    assert "SSD, RAID1" in str(device_of(tmp_path, root, mounts(tmp_path, "/dev/mapper/vg-backup", "xfs")))


def test_what_the_kernel_does_not_tell_is_unknown(tmp_path: Path) -> None:
    found = device_of(tmp_path, sysfs(tmp_path / "sys", {}), mounts(tmp_path, "nas:/export", "nfs4"))
    assert found == Device("nas:/export", "nfs4", None, None)
    assert "device unknown" in str(found)


def test_the_tier_says_it_of_this_host(tmp_path: Path) -> None:
    assert LocalTier(tmp_path).describe().startswith(f"{tmp_path}, ")


def test_copies_that_writers_left_are_cleared_when_old_and_nothing_else(tmp_path: Path) -> None:
    tier = LocalTier(tmp_path)
    staging = tier.staging_dir()
    for name in ("put-old", "adopt-old", "put-new", "run-7"):
        (staging / name).write_bytes(b"half")
        if not name.endswith("new"):
            os.utime(staging / name, (0, 0))
    assert tier.clear_unfinished(3600) == ["adopt-old", "put-old"]
    assert sorted(path.name for path in staging.iterdir()) == ["put-new", "run-7"]
