"""The disks of a laboratory guest: what each is, and how its image is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab.paths import give_to_qemu
from lab.shellcommand import call

MIB = 1 << 20
ImageFormat = Literal["qcow2", "raw"]


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk: `size` in bytes, `sector` the logical sector size in bytes.

    The bus follows the target's name: vdX is virtio-blk, sdX is virtio-scsi. `detect_zeroes` is QEMU's setting: with
    "unmap", zeroes that the guest writes become discards. `ext4` puts an empty file system on the whole disk.
    """

    target: str
    size: int
    sector: int = 512
    detect_zeroes: Literal["off", "on", "unmap"] = "unmap"
    ext4: bool = False
    format: ImageFormat = "qcow2"

    @property
    def serial(self) -> str:
        """The serial number that guest and domain XML know the disk by."""
        return f"lab-{self.target}"


STANDARD_DISKS = (
    DiskSpec("vda", 256 * MIB, ext4=True),
    DiskSpec("vdb", 64 * MIB, detect_zeroes="off"),
    DiskSpec("vdc", 128 * MIB, sector=4096),
    DiskSpec("sda", 96 * MIB),
)


def make_image(spec: DiskSpec, path: Path) -> None:
    """Create the image file of a disk, empty or with an empty ext4, and give it to QEMU's user."""
    if spec.ext4:
        _make_ext4(spec, path)
    else:
        call(["qemu-img", "create", "-q", "-f", spec.format, path, str(spec.size)])
    give_to_qemu(path)


def _make_ext4(spec: DiskSpec, path: Path) -> None:
    raw = path.with_suffix(".mke2fs")
    with raw.open("wb") as file:
        os.truncate(file.fileno(), spec.size)
    call(["/sbin/mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", raw])
    call(["qemu-img", "convert", "-f", "raw", "-O", spec.format, raw, path])
    raw.unlink()
