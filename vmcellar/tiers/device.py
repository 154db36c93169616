"""What a directory really lies on: the block devices below its file system, as sysfs(5) tells them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Device:
    """`rotational` and `raid` are None where the kernel does not tell: network shares, tmpfs, a RAID controller."""

    source: str
    filesystem: str
    rotational: bool | None = None
    raid: str | None = None

    def __str__(self) -> str:
        speed = {None: "device unknown", True: "rotating disk", False: "SSD"}[self.rotational]
        return ", ".join(filter(None, (f"{self.filesystem} on {self.source}", speed, self.raid)))


def device_of(path: Path, sysfs: Path = Path("/sys"), mounts: Path = Path("/proc/self/mountinfo")) -> Device:
    """The device below `path`, through partitions, LVM, encryption and md; any rotating disk makes it rotational."""
    found = path.stat().st_dev
    source, kind = _mount_of(path.resolve(), mounts)
    block = sysfs / "dev" / "block" / f"{os.major(found)}:{os.minor(found)}"
    if os.major(found) == 0 and source.startswith("/dev/"):  # btrfs and its like have numbers of their own
        with suppress(OSError):
            number = Path(source).stat().st_rdev
            block = sysfs / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    levels: list[str] = []
    disks = [_rotates(disk) for disk in _disks(block, levels)] if block.exists() else []
    known = [disk for disk in disks if disk is not None]
    return Device(source, kind, any(known) if known else None, " over ".join(levels).upper() or None)


def _mount_of(path: Path, mounts: Path) -> tuple[str, str]:
    """Source and type of the mount that `path` is on; the last of the longest wins (proc(5), mountinfo)."""
    best, found = -1, ("unknown", "unknown")
    for line in mounts.read_text().splitlines():
        left, _, right = line.partition(" - ")
        where = Path(left.split()[4].replace("\\040", " "))
        if path.is_relative_to(where) and len(where.parts) >= best:
            kind, source = right.split()[:2]
            best, found = len(where.parts), (source, kind)
    return found


def _disks(block: Path, levels: list[str]) -> Iterator[Path]:
    """The disks below a block device; what md says of its level goes to `levels`."""
    device = block.resolve()
    if (device / "partition").exists():
        device = device.parent
    with suppress(OSError):
        levels.append((device / "md" / "level").read_text().strip())
    slaves = sorted((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    for slave in slaves:
        yield from _disks(slave, levels)
    if not slaves:
        yield device


def _rotates(disk: Path) -> bool | None:
    try:
        return (disk / "queue" / "rotational").read_text().strip() == "1"
    except OSError:
        return None
