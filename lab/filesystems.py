"""Disks with the file systems of guests and a tree of awkward files in each, made by libguestfs in its appliance.

Built once per recipe, in about 20 s under TCG, into the cache folder; the tree lies beside them, to compare with.

    vda  GPT: vda1 ext4 with an operating system's files, whose fstab names the LV below; vda2 LUKS, in it ext4
    vdb  LVM: vg0/data XFS, in two parts with vg0/more, ext4 (empty), between them; /spread in it has large files
    vdc  Btrfs on the whole disk, with a subvolume @home
    vdd  MBR: vdd1 NTFS
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.accel import accelerator
from lab.disks import MIB, DiskSpec
from lab.paths import give_to_qemu, lab_dir, lab_lock
from lab.shellcommand import LabError, call

SPARSE_SIZE = 3 << 30
SPARSE_DATA = ((0, b"first"), (1 << 30, b"middle" * 1000), (SPARSE_SIZE - 4, b"last"))
SECONDS = 981173106
MTIME = SECONDS * 10**9 + 123456789
"""Of every file in the tree, in nanoseconds."""

DISKS = (
    DiskSpec("vda", 128 * MIB, format="raw"),
    DiskSpec("vdb", 512 * MIB, format="raw"),
    DiskSpec("vdc", 256 * MIB, format="raw"),
    DiskSpec("vdd", 64 * MIB, format="raw"),
)
SPREAD = "/spread"
"""A folder of vg0/data alone: in it folders with a `file` each; 0/again shares the blocks of 0/file."""
WINDOWS_FILES = {"Users/a b.txt": b"text\r\n", "Users/Grüße.bin": bytes(range(256)) * 999}
_FSTAB = "/dev/sda1 / ext4 defaults 0 1\n/dev/vg0/data /data xfs defaults 0 2\n"
_LUKS_START, _LUKS_END = 96 * MIB, 126 * MIB
PASSPHRASE = b"of the laboratory"
SECRET = "what only the passphrase shows\n"  # noqa: S105  (a file's text)
"""In vda2:/secret."""


@dataclass(frozen=True, slots=True)
class FileSystems:
    """`images` are raw files by target; `tree` is what vda1:/tree, vg0/data:/tree and vdc:/tree were made from."""

    images: dict[str, Path]
    tree: Path


def file_systems() -> FileSystems:
    """The disks, built at the first call. LabError when libguestfs or its Python binding is missing."""
    recipe = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=6).hexdigest()
    folder = lab_dir() / f"filesystems-{recipe}"
    with lab_lock("filesystems"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix="build-", dir=lab_dir()) as name:
                work = Path(name) / "result"
                work.mkdir(mode=0o755)
                _build(work)
                work.rename(folder)
    return FileSystems({spec.target: folder / f"{spec.target}.raw" for spec in DISKS}, folder / "tree")


def use_working_accelerator() -> None:
    """Tell libguestfs, in this process and its children, to leave a KVM alone under which guests hang."""
    if accelerator() == "tcg":
        os.environ["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"


def spread() -> dict[str, bytes]:
    """What the files below SPREAD hold, by the names of their folders."""
    return {str(number): _noise(number, MIB + 4096 * number + 7) for number in range(8)}


def _noise(seed: int, length: int) -> bytes:
    return hashlib.shake_128(f"noise {seed}".encode()).digest(length)


def make_tree(root: Path) -> None:
    """Files of every kind and with awkward names; needs root."""
    root.mkdir(mode=0o755)
    (root / "folder").mkdir(mode=0o750)
    (root / "folder/empty").mkdir(mode=0o711)
    _file(root / "plain", b"plain text\n", mode=0o644)
    _file(root / "folder/owned", os.urandom(100_000), mode=0o4640, owner=(1234, 5678))
    _file(root / "with spaces  at the end ", b"spaces", mode=0o600)
    _file(root / "new\nline", b"newline", mode=0o600)
    _file(root / os.fsdecode(b"not utf-8 \xff\xfe"), b"bytes", mode=0o600)
    _file(root / "[star]*?\\back", b"pattern", mode=0o600)
    _file(root / "plainer", b"a longer name", mode=0o644)
    _file(root / "tagged", b"xattr", mode=0o644)
    os.setxattr(root / "tagged", "user.note", b"\x00binary\nvalue\xff")
    os.link(root / "plain", root / "folder/hard link")
    (root / "link").symlink_to("folder/owned")
    (root / "absolute").symlink_to("/tree/folder")
    (root / "dangling").symlink_to("nowhere/at all")
    os.mkfifo(root / "pipe", 0o640)
    with (root / "sparse").open("wb") as file:
        file.truncate(SPARSE_SIZE)
        for offset, data in SPARSE_DATA:
            file.seek(offset)
            file.write(data)
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(MTIME, MTIME), follow_symlinks=False)
    os.utime(root, ns=(MTIME, MTIME))


def _file(path: Path, content: bytes, mode: int, owner: tuple[int, int] = (0, 0)) -> None:
    path.write_bytes(content)
    os.chown(path, *owner)
    path.chmod(mode)


def _build(work: Path) -> None:
    use_working_accelerator()
    tree, packed = work / "tree", work / "tree.tar"
    make_tree(tree)
    call(["tar", "-C", work, "--format=pax", "--sparse", "--xattrs", "--numeric-owner", "-cf", packed, "tree"])
    for spec in DISKS:
        with (work / f"{spec.target}.raw").open("wb") as file:
            file.truncate(spec.size)
    _encrypt(work / "vda.raw")
    guestfs = launched([work / f"{spec.target}.raw" for spec in DISKS])
    try:
        _fill(guestfs, packed)
        guestfs.shutdown()
    finally:
        guestfs.close()
    packed.unlink()


def launched(images: list[Path]) -> Any:
    """libguestfs's own binding with these raw images, writable, in an appliance that runs."""
    try:
        guestfs = importlib.import_module("guestfs").GuestFS(python_return_dict=True)
    except ImportError as error:
        raise LabError("python3-guestfs is not installed; `./run test` as root installs it") from error
    guestfs.set_backend("direct")
    guestfs.set_append('TAR_OPTIONS="--xattrs --xattrs-include=* --numeric-owner"')
    for image in images:
        guestfs.add_drive_opts(str(image), format="raw")
    guestfs.launch()
    return guestfs


def _fill(guestfs: Any, packed: Path) -> None:
    _partition(guestfs)
    guestfs.mkfs("ext4", "/dev/sda1")
    guestfs.mount("/dev/sda1", "/")
    for folder in ("/etc", "/bin", "/data", "/dev"):
        guestfs.mkdir(folder)
    guestfs.write("/etc/fstab", _FSTAB)
    guestfs.write("/etc/os-release", 'ID=debian\nNAME="Debian"\nVERSION_ID="12"\nPRETTY_NAME="Lab"\n')
    guestfs.write("/etc/hostname", "lab\n")
    guestfs.mknod(stat.S_IFCHR | 0o600, 1, 3, "/dev/null")
    _unpack(guestfs, packed)
    guestfs.mkfs("xfs", "/dev/vg0/data")
    guestfs.mkfs("ext4", "/dev/vg0/more", label="more")
    guestfs.mount("/dev/vg0/data", "/")
    guestfs.mkdir(SPREAD)
    for name, content in spread().items():
        guestfs.mkdir(f"{SPREAD}/{name}")  # XFS puts what is in another folder elsewhere
        guestfs.write(f"{SPREAD}/{name}/file", content)
    guestfs.debug("sh", [f"cp --reflink=always /sysroot{SPREAD}/0/file /sysroot{SPREAD}/0/again"])
    _unpack(guestfs, packed)
    guestfs.mkfs("btrfs", "/dev/sdc")
    guestfs.mount("/dev/sdc", "/")
    guestfs.btrfs_subvolume_create("/@home")
    guestfs.write("/@home/note", "in a subvolume")
    _unpack(guestfs, packed)
    guestfs.mkfs("ntfs", "/dev/sdd1", label="Windows")
    guestfs.mount("/dev/sdd1", "/")
    guestfs.mkdir("/Users")
    for name, content in WINDOWS_FILES.items():
        guestfs.write(f"/{name}", content)
        guestfs.utimens(f"/{name}", SECONDS, 0, SECONDS, 0)
    guestfs.umount_all()
    guestfs.cryptsetup_open("/dev/sda2", PASSPHRASE.decode(), "secret")
    guestfs.mkfs("ext4", "/dev/mapper/secret", label="hidden")
    guestfs.mount("/dev/mapper/secret", "/")
    guestfs.write("/secret", SECRET)
    guestfs.umount_all()
    guestfs.cryptsetup_close("/dev/mapper/secret")


def _partition(guestfs: Any) -> None:
    guestfs.part_init("/dev/sda", "gpt")
    guestfs.part_add("/dev/sda", "p", 2048, _LUKS_START // 512 - 1)
    guestfs.part_add("/dev/sda", "p", _LUKS_START // 512, _LUKS_END // 512 - 1)
    guestfs.part_disk("/dev/sdd", "mbr")
    guestfs.pvcreate("/dev/sdb")
    guestfs.vgcreate("vg0", ["/dev/sdb"])
    guestfs.lvcreate("data", "vg0", 128)
    guestfs.lvcreate("more", "vg0", 32)
    guestfs.lvresize("/dev/vg0/data", 384)


def _unpack(guestfs: Any, packed: Path) -> None:
    guestfs.tar_in(str(packed), "/")
    guestfs.umount_all()


def _encrypt(image: Path) -> None:
    """A LUKS header, made by cryptsetup here: its work on the key takes long under TCG."""
    header = image.with_suffix(".luks")
    with header.open("wb") as file:
        file.truncate(20 * MIB)
    cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    call(["/sbin/cryptsetup", "-q", "luksFormat", *cheap, "--key-file", "-", header], data=PASSPHRASE)
    call(
        [
            "dd",
            f"if={header}",
            f"of={image}",
            "bs=1M",
            f"seek={_LUKS_START // MIB}",
            "conv=notrunc,sparse",
            "status=none",
        ]
    )
    header.unlink()


def copies(source: FileSystems, folder: Path) -> dict[str, Path]:
    """Sparse copies of the images in a folder that QEMU's user may enter, for a guest to have as its disks."""
    found = {}
    for target, image in source.images.items():
        found[target] = folder / f"{target}.raw"
        call(["cp", "--sparse=always", image, found[target]])
        give_to_qemu(found[target])
    return found


def discard() -> None:
    """Remove what was built."""
    for folder in lab_dir().glob("filesystems-*"):
        if folder.is_dir():
            shutil.rmtree(folder)
