"""Build the guest: a Debian cloud kernel and an initramfs with busybox, virtio modules and the QEMU guest agent.

Both come from Debian packages of this machine and its package source, about 18 MB together, built once per recipe into
the cache folder. Direct kernel boot needs no boot loader and no root disk.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.paths import lab_dir, lab_lock
from lab.shellcommand import LabError, call

KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_console", "virtio_net")
HERE = Path(__file__).parent
SHUTDOWN = "#!/bin/sh\nsync\numount /data\npoweroff -f\n"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Paths of the kernel and the initramfs that libvirt boots directly."""

    kernel: Path
    initrd: Path


def guest_image() -> GuestImage:
    """The guest's kernel and initramfs, built at the first call (about 5 s and 27 MB of download), then cached."""
    with lab_lock("image"):
        folder = lab_dir() / f"image-{_recipe()}"
        image = GuestImage(folder / "vmlinuz", folder / "initrd.gz")
        if not folder.exists():
            _build(image)
        return image


def _recipe() -> str:
    text = "".join((HERE / name).read_text() for name in ("guest_init.sh", "guest_device.sh", "image.py"))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _build(image: GuestImage) -> None:
    with tempfile.TemporaryDirectory(prefix="build-", dir=lab_dir()) as name:
        work = Path(name)
        unpacked = _unpack_kernel(work)
        result, root = work / "result", work / "root"
        result.mkdir(mode=0o755)
        shutil.copy(next(unpacked.glob("boot/vmlinuz-*")), result / "vmlinuz")
        _fill_root(root, unpacked)
        _pack(root, result / "initrd.gz")
        for path in result.iterdir():
            path.chmod(0o644)
        result.rename(image.kernel.parent)


def _unpack_kernel(work: Path) -> Path:
    depends = call(["apt-cache", "depends", KERNEL_PACKAGE])
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise LabError(f"the package source knows no {KERNEL_PACKAGE}; run `apt-get update` as root")
    # apt-get downloads into its working folder, and as its own user, who may not write to ours: hence root's sandbox.
    download = f"cd '{work}' && exec apt-get -q -o APT::Sandbox::User=root download {found[1]}"
    call(["sh", "-c", download], seconds=300)
    call(["dpkg", "-x", next(work.glob("*.deb")), work / "kernel"])
    return work / "kernel"


def _fill_root(root: Path, kernel: Path) -> None:
    for name in ("bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "data", "modules"):
        (root / name).mkdir(parents=True)
    (root / "etc/mtab").symlink_to("/proc/mounts")
    _add_busybox(root)
    _add_program(root, Path("/usr/sbin/qemu-ga"))
    _add_modules(root, kernel)
    _add_script(root / "init", (HERE / "guest_init.sh").read_text())
    _add_script(root / "bin/lab-device", (HERE / "guest_device.sh").read_text())
    _add_script(root / "sbin/shutdown", SHUTDOWN)


def _add_busybox(root: Path) -> None:
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        raise LabError("busybox-static is not installed; `./run setup` as root installs it")
    shutil.copy(busybox, root / "bin/busybox")
    for applet in call([busybox, "--list"]).split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")


def _add_program(root: Path, program: Path) -> None:
    if not program.exists():
        raise LabError(f"{program} is missing; `./run setup` as root installs qemu-guest-agent")
    for library in re.findall(r"(/\S+) \(0x", call(["ldd", program])):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    shutil.copy(program, root / "sbin" / program.name)


def _add_modules(root: Path, kernel: Path) -> None:
    version = next((kernel / "lib/modules").iterdir()).name
    call(["/sbin/depmod", "-b", kernel, version])
    order: list[str] = []
    for module in MODULES:
        shown = call(["/sbin/modprobe", "-d", kernel, "-S", version, "--show-depends", module])
        for line in re.findall(r"insmod (\S+)", shown):
            path = Path(line)
            if path.name not in order:
                order.append(path.name)
                shutil.copy(path, root / "modules" / path.name)
    (root / "modules/order").write_text("\n".join(order) + "\n")


def _add_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _pack(root: Path, target: Path) -> None:
    archive = target.with_suffix(".cpio")
    call(["sh", "-c", f"cd '{root}' && find . | cpio --quiet -o -H newc -R 0:0 >'{archive}'"])
    with archive.open("rb") as plain, gzip.open(target, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(plain, packed)
    archive.unlink()


if __name__ == "__main__":
    built = guest_image()
    print(built.kernel, built.initrd)
    sys.exit(0)
