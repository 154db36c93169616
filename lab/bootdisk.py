"""Small disks that really boot: GRUB in the master boot record for BIOS, and on an EFI system partition for OVMF.

On the first partition lie the lab's kernel, its initramfs and a grub.cfg. GRUB puts `lab.grub=PLATFORM` on the kernel's
command line, which tells inside that the guest came through it. Nothing is mounted and no device is needed. Sources:
grub-mkimage(1), boot.S and diskboot.S of GRUB 2.06 (where the two halves look for each other), UEFI 2.10, 3.5.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Literal

from lab.disks import MIB, DiskSpec
from lab.domain import KERNEL_ARGUMENTS
from lab.image import guest_image
from lab.paths import give_to_qemu, lab_dir, lab_lock
from lab.shellcommand import LabError, call

Platform = Literal["i386-pc", "x86_64-efi"]
BOOT_DISK = DiskSpec("vda", 64 * MIB, format="raw")
_GRUB = Path("/usr/lib/grub")
_SECTOR = 512
_START = 2048
"""First sector of the only partition; core.img lies before it."""

_TABLE, _SIGNATURE = 446, 510
_MODULES = ("normal", "configfile", "linux", "part_msdos", "ext2", "fat")
_OF_BIOS = ("biosdisk",)
_CONFIG = """linux /boot/vmlinuz {arguments} lab.grub={platform}
initrd /boot/initrd.gz
boot
"""


def boot_disk(platform: Platform, folder: Path) -> Path:
    """A copy of the disk in `folder`, QEMU's; what it is copied from is built at the first call, in about 2 s."""
    image = guest_image()
    recipe = hashlib.blake2b(f"{image.kernel} {Path(__file__).read_text()}".encode(), digest_size=6).hexdigest()
    made = lab_dir() / f"boot-{platform}-{recipe}.raw"
    with lab_lock("bootdisk"):
        if not made.exists():
            with tempfile.TemporaryDirectory(prefix="build-", dir=lab_dir()) as name:
                _build(platform, Path(name)).rename(made)
    copy = folder / f"boot-{platform}.raw"
    call(["cp", "--sparse=always", made, copy])
    give_to_qemu(copy)
    return copy


def _build(platform: Platform, work: Path) -> Path:
    content, partition, disk = work / "content", work / "partition", work / "disk"
    _fill(platform, content)
    with partition.open("wb") as file:
        file.truncate(BOOT_DISK.size - _START * _SECTOR)
    core = _core(platform, work)
    if platform == "i386-pc":
        call(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", content, partition])
        _write_disk(disk, partition, 0x83, (_GRUB / platform / "boot.img").read_bytes()[:440], core.read_bytes())
    else:
        (content / "EFI/BOOT").mkdir(parents=True)
        shutil.copy(core, content / "EFI/BOOT/BOOTX64.EFI")
        call(["/sbin/mkfs.vfat", "-F", "32", "-s", "1", partition])
        call(["mcopy", "-s", "-i", partition, content / "EFI", content / "boot", "::/"])
        _write_disk(disk, partition, 0xEF, b"", b"")
    return disk


def _fill(platform: Platform, content: Path) -> None:
    (content / "boot/grub").mkdir(parents=True)
    image = guest_image()
    shutil.copy(image.kernel, content / "boot/vmlinuz")
    shutil.copy(image.initrd, content / "boot/initrd.gz")
    text = _CONFIG.format(arguments=KERNEL_ARGUMENTS, platform=platform)
    (content / "boot/grub/grub.cfg").write_text(text)


def _core(platform: Platform, work: Path) -> Path:
    if not (_GRUB / platform / "kernel.img").exists():
        raise LabError(f"GRUB for {platform} is not installed; `./run test` as root installs it")
    prefix = "(hd0,msdos1)/boot/grub"
    modules = (*_MODULES, *(_OF_BIOS if platform == "i386-pc" else ()))
    call(["grub-mkimage", "-O", platform, "-o", work / "core", "-p", prefix, *modules])
    return work / "core"


def _write_disk(disk: Path, partition: Path, kind: int, boot: bytes, core: bytes) -> None:
    """One active partition; `boot` goes into the master boot record and `core` behind it, as grub-install does."""
    if len(core) > (_START - 1) * _SECTOR:
        raise LabError(f"GRUB's core of {len(core)} bytes does not fit before the partition")
    sectors = partition.stat().st_size // _SECTOR
    record = bytearray(_SECTOR)
    record[: len(boot)] = boot
    record[_TABLE : _TABLE + 16] = struct.pack(
        "<B3sB3sII", 0x80, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", _START, sectors
    )
    record[_SIGNATURE:] = b"\x55\xaa"
    disk.write_bytes(record + core)
    call(["dd", f"if={partition}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"])
    with disk.open("r+b") as file:
        file.truncate(BOOT_DISK.size)
