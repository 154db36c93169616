"""libguestfs through its C interface, as far as it is needed here: every name goes in and comes out as bytes.

Its Python binding turns names into UTF-8 text and fails on any other, which ext4, XFS and Btrfs allow; the C interface,
whose binary compatibility libguestfs promises, takes bytes. Source: guestfs(3), guestfs.h of 1.48.

One thread per handle, but for `cancel`.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Self

from vmcellar.errors import PermanentError

PACKAGES = "apt-get install libguestfs0 libguestfs-xfs linux-image-amd64"
_LIBRARY = "libguestfs.so.0"
_END_OF_OPTIONS = -1
_READONLY, _FORMAT, _LABEL, _PROTOCOL, _SERVER, _BLOCKSIZE = 0, 1, 4, 5, 6, 12  # GUESTFS_ADD_DRIVE_OPTS_* of guestfs.h
_OPEN_READONLY = 0  # GUESTFS_CRYPTSETUP_OPEN_READONLY
_NO_MODIFY = 1  # GUESTFS_XFS_REPAIR_NOMODIFY
_CORRECT = 0  # GUESTFS_E2FSCK_CORRECT
_EXCLUDES = 2  # GUESTFS_TAR_OUT_OPTS_EXCLUDES
_TAR = "--sparse --format=pax --xattrs --acls --numeric-owner --anchored"
"""Options of the appliance's tar, through its environment: pax keeps nanoseconds and any name, holes are not sent."""

_STAT_FIELDS = (
    *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"),
    *("atime", "atime_ns", "mtime", "mtime_ns", "ctime", "ctime_ns"),
    *(f"spare{number}" for number in range(1, 7)),
)


SUBVOLUME = b"btrfsvol:"
_DISK = re.compile(rb"/dev/sd[a-z]+(\d*)")
_ON_DISK = re.compile(SUBVOLUME + _DISK.pattern + rb"/(.*)", re.DOTALL)


class Stat(ctypes.Structure):
    """struct guestfs_statns; a file that went away has the inode -1."""

    _fields_ = [(name, ctypes.c_int64) for name in _STAT_FIELDS]

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    mtime_ns: int


class _StatList(ctypes.Structure):
    _fields_ = [("len", ctypes.c_uint32), ("val", ctypes.POINTER(Stat))]


class _Subvolume(ctypes.Structure):
    """struct guestfs_btrfssubvolume."""

    _fields_ = [("id", ctypes.c_uint64), ("top", ctypes.c_uint64), ("path", ctypes.c_char_p)]


class _SubvolumeList(ctypes.Structure):
    _fields_ = [("len", ctypes.c_uint32), ("val", ctypes.POINTER(_Subvolume))]


class GuestfsError(PermanentError):
    """libguestfs, or a program in its appliance, refused; the message holds its words."""


class Guestfs:
    """One appliance. Disks are added, then it is launched, then it answers; the end of the block ends it."""

    def __init__(self) -> None:
        self._library = _load()
        self._handle = ctypes.c_void_p(self._library.guestfs_create())
        self._subvolumes: dict[bytes, list[bytes]] = {}

    def __enter__(self) -> Self:
        """PermanentError without libguestfs comes from the constructor."""
        self._library.guestfs_set_error_handler(self._handle, None, None)  # not on stderr: errors are raised
        if not os.environ.get("LIBGUESTFS_BACKEND"):
            self._call("set_backend", b"direct")  # the other way asks a libvirt, whose QEMU may not open our socket
        self._call("set_append", f'TAR_OPTIONS="{_TAR}"'.encode())
        return self

    def __exit__(self, *_: object) -> None:
        self._library.guestfs_close(self._handle)

    def add_nbd(self, socket: str, export: str, sector: int, label: str = "") -> None:
        """Add an NBD export, read-only: what the appliance writes, such as a journal's replay, is thrown away.

        `label`, letters alone, is its name in the appliance's /dev/disk/guestfs.
        """
        options = (
            *((_LABEL, label.encode()) if label else ()),
            *(_READONLY, ctypes.c_int(1), _FORMAT, b"raw", _BLOCKSIZE, ctypes.c_int(sector)),
            *(_PROTOCOL, b"nbd", _SERVER, _strings([f"unix:{socket}".encode()]), _END_OF_OPTIONS),
        )
        self._call("add_drive_opts", export.encode(), *options)

    def add_image(self, path: str) -> None:
        """Add a raw image. What the appliance writes is thrown away, as with `add_nbd`."""
        self._call("add_drive_opts", path.encode(), _READONLY, ctypes.c_int(1), _FORMAT, b"raw", _END_OF_OPTIONS)

    def has(self, feature: str) -> bool:
        """Whether the appliance has the programs for it; of guestfs(3), "AVAILABILITY"."""
        return bool(self._call("feature_available", _strings([feature.encode()])))

    def launch(self) -> None:
        """Start the appliance: 2 to 20 s. GuestfsError, with a hint, when it cannot."""
        try:
            self._call("launch")
        except GuestfsError as error:
            raise GuestfsError(
                f"libguestfs could not start its appliance: {error.message}",
                hint=f"it needs a kernel in /boot ({PACKAGES}); libguestfs-test-tool says more. "
                "Where KVM does not work: LIBGUESTFS_BACKEND_SETTINGS=force_tcg",
            ) from error

    def cancel(self) -> None:
        """End `tar_out` where it is; from any thread, or a signal handler."""
        self._library.guestfs_user_cancel(self._handle)

    def list_devices(self) -> list[bytes]:
        """The disks, in the order in which they were added."""
        return self._strings("list_devices")

    def containers(self) -> list[bytes]:
        """All disks, partitions and logical volumes."""
        return [*self.list_devices(), *self._strings("list_partitions"), *self._strings("lvs")]

    def list_filesystems(self) -> dict[bytes, bytes]:
        """Everything that may be mounted, and its type; "unknown" where there is none. Subvolumes of Btrfs are
        btrfsvol:DEVICE/PATH.
        """
        told = _pairs(self._strings("list_filesystems"))
        found = {device: kind for device, kind in told.items() if not device.startswith(SUBVOLUME)}
        self._subvolumes = {device: self.subvolumes(device) for device, kind in found.items() if kind == b"btrfs"}
        volumes = (_volume(device, path) for device, paths in self._subvolumes.items() for path in paths)
        return found | dict.fromkeys(volumes, b"btrfs")

    def subvolumes(self, device: bytes) -> list[bytes]:
        """The paths of the subvolumes of a Btrfs, but for the one that is mounted when none is named."""
        address = self._call("btrfs_subvolume_list", device)
        content = ctypes.cast(address, ctypes.POINTER(_SubvolumeList)).contents
        volumes = [(content.val[number].id, content.val[number].path) for number in range(content.len)]
        self._library.guestfs_free_btrfssubvolume_list(ctypes.c_void_p(address))
        default = self._call("btrfs_subvolume_get_default", device)
        return [path for number, path in volumes if number != default]

    def open_encrypted(self, device: bytes, key: bytes, name: str) -> bytes:
        """Open a LUKS or BitLocker container read-only by its passphrase: the new device.

        GuestfsError when the passphrase does not open it.
        """
        self._call("cryptsetup_open", device, key, name.encode(), _OPEN_READONLY, ctypes.c_int(1), _END_OF_OPTIONS)
        return b"/dev/mapper/" + name.encode()

    def scan_volumes(self) -> None:
        """Find and activate the logical volumes on devices that are new."""
        self._call("lvm_scan", ctypes.c_int(1))

    def vfs_type(self, device: bytes) -> bytes:
        """What blkid knows a device as; empty for nothing."""
        return self._text("vfs_type", device)

    def vfs_label(self, device: bytes) -> bytes:
        """The label of a file system; empty when it has none."""
        return self._text("vfs_label", device)

    def vfs_uuid(self, device: bytes) -> str:
        """The UUID of a file system; empty when it has none."""
        return self._text("vfs_uuid", device).decode(errors="backslashreplace")

    def inspect_os(self) -> list[bytes]:
        """The root file systems of the operating systems found. Unmounts everything."""
        return [self._as_taken(root) for root in self._strings("inspect_os")]

    def mount_points(self, root: bytes) -> dict[bytes, bytes]:
        """Where an operating system that `inspect_os` found mounts what: device by path."""
        points = _pairs(self._strings("inspect_get_mountpoints", root))
        return {path: self._as_taken(device) for path, device in points.items()}

    def mount(self, device: bytes, path: bytes) -> None:
        """Mount in the appliance, read-only."""
        self._call("mount_ro", device, path)

    def read(self, device: bytes, length: int, offset: int) -> bytes:
        """Bytes of a device; fewer at its end."""
        size = ctypes.c_size_t()
        place = ctypes.c_int64(offset)
        address = self._call("pread_device", device, ctypes.c_int(length), place, ctypes.byref(size))
        content = ctypes.string_at(address, size.value)
        _free(address)
        return content

    def mount_writable(self, device: bytes, path: bytes) -> None:
        """Mount in the appliance; its kernel replays a journal, and writes."""
        self._call("mount", device, path)

    def xfs_problem(self, device: bytes) -> str:
        """What xfs_repair would repair, without doing it; empty when that is nothing. GuestfsError: it did not run."""
        status = self._call("xfs_repair", device, _NO_MODIFY, ctypes.c_int(1), _END_OF_OPTIONS)
        return f"xfs_repair -n ended with {status}" if status else ""

    def btrfs_problem(self, device: bytes) -> str:
        """What `btrfs check` finds; empty when that is nothing."""
        try:
            self._call("btrfs_fsck", device, _END_OF_OPTIONS)
        except GuestfsError as error:
            return error.message
        return ""

    def ext_problem(self, device: bytes) -> str:
        """What `e2fsck -p` leaves to a person; empty when that is nothing. It corrects counts: a writable device."""
        try:
            self._call("e2fsck", device, _CORRECT, ctypes.c_int(1), _END_OF_OPTIONS)
        except GuestfsError as error:
            return error.message
        return ""

    def partition_types(self) -> list[str]:
        """The types of all GPT partitions."""
        found = []
        for device in self._strings("list_partitions"):
            disk, number = self._text("part_to_dev", device), self._call("part_to_partnum", device)
            if self._text("part_get_parttype", disk) == b"gpt":
                found.append(self._text("part_get_gpt_type", disk, ctypes.c_int(number)).decode())
        return found

    def read_text(self, path: bytes) -> bytes:
        """A small text file of what is mounted."""
        return self._text("cat", path)

    def shell(self, script: str) -> str:
        """What a script of /bin/sh in the appliance prints; what is mounted is below /sysroot there.

        libguestfs promises nothing about it: check what comes back.
        """
        return self._text("debug", b"sh", _strings([script.encode()])).decode(errors="backslashreplace")

    def unmount(self) -> None:
        """Unmount everything."""
        self._call("umount_all")

    def real_path(self, path: bytes) -> bytes:
        """The path without symbolic links; GuestfsError when it does not exist."""
        return self._text("realpath", path)

    def is_folder(self, path: bytes) -> bool:
        """Whether there is a folder at `path` itself."""
        return bool(self._call("is_dir", path))

    def names(self, folder: bytes) -> list[bytes]:
        """The names in a folder, sorted."""
        return self._strings("ls", folder)

    def stats(self, folder: bytes, names: Sequence[bytes]) -> list[Stat]:
        """What `lstat` says of each name in a folder."""
        found = self._call("lstatnslist", folder, _strings(names))
        content = ctypes.cast(found, ctypes.POINTER(_StatList)).contents
        stats = [Stat.from_buffer_copy(content.val[number]) for number in range(content.len)]
        self._library.guestfs_free_statns_list(ctypes.c_void_p(found))
        return stats

    def links(self, folder: bytes, names: Sequence[bytes]) -> list[bytes]:
        """Where each name in a folder points to; empty for what is no symbolic link."""
        return self._strings("readlinklist", folder, _strings(names))

    def tar_out(self, folder: bytes, descriptor: int, excludes: Sequence[bytes] = ()) -> None:
        """Write a folder as a pax archive to an open file descriptor; names begin with "./".

        `excludes` are tar's patterns, anchored. Frees the interpreter lock while it runs.
        """
        options = (_EXCLUDES, _strings(excludes), _END_OF_OPTIONS)
        self._call("tar_out_opts", folder, f"/dev/fd/{descriptor}".encode(), *options)

    def _as_taken(self, told: bytes) -> bytes:
        """What libguestfs calls a subvolume, by the name under which it takes it. GuestfsError on doubt.

        It tells, up to 1.48 at least, the kernel's name of the disk, and takes its own: the order in which disks were
        added. The kernel looks for disks in parallel, so now and then these are names of two disks.
        """
        match = _ON_DISK.fullmatch(told)
        if match is None:
            return told
        if not self._subvolumes:
            self.list_filesystems()
        taken = [
            _volume(device, path)
            for device, paths in self._subvolumes.items()
            for path in paths
            if (disk := _DISK.fullmatch(device)) and (disk[1], path) == (match[1], match[2])
        ]
        if len(taken) != 1:
            path = match[2].decode(errors="backslashreplace")
            raise GuestfsError(
                f"{len(taken)} disks have the subvolume {path}: which one is the guest's own tree is not clear",
                hint="name the file system before the path, as in vda2/@:/etc",
            )
        return taken[0]

    def _text(self, name: str, *arguments: object) -> bytes:
        address = self._call(name, *arguments)
        text = ctypes.string_at(address)
        _free(address)
        return text

    def _strings(self, name: str, *arguments: object) -> list[bytes]:
        return list(_taken(self._call(name, *arguments)))

    def _call(self, name: str, *arguments: object) -> int:
        """Call guestfs_NAME; GuestfsError when it returns -1, or no address where one is expected."""
        function = getattr(self._library, f"guestfs_{name}")
        address = name in _ADDRESSES
        function.restype = ctypes.c_void_p if address else ctypes.c_int
        result = function(self._handle, *arguments)
        if (result is None) if address else (result == -1):
            words = self._library.guestfs_last_error(self._handle) or b"no reason given"
            raise GuestfsError(words.decode(errors="backslashreplace"))
        return int(result)


def _volume(device: bytes, path: bytes) -> bytes:
    return SUBVOLUME + device + b"/" + path


_ADDRESSES = frozenset(
    {
        *("list_devices", "list_partitions", "lvs", "list_filesystems", "inspect_os", "inspect_get_mountpoints"),
        *("vfs_type", "vfs_label", "vfs_uuid", "realpath", "ls", "lstatnslist", "readlinklist", "btrfs_subvolume_list"),
        *("pread_device", "part_to_dev", "part_get_parttype", "part_get_gpt_type", "cat", "debug"),
    }
)


def check_installed() -> None:
    """PermanentError, with the packages to install, when libguestfs is not there."""
    _load()


@cache
def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise PermanentError(
            "libguestfs, which reads file systems inside disks, is not installed", hint=PACKAGES
        ) from error
    library.guestfs_create.restype = ctypes.c_void_p
    library.guestfs_last_error.restype = ctypes.c_char_p
    return library


def _free(address: int) -> None:
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    free(address)


def _strings(values: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(values) + 1))(*values, None)


def _taken(address: int) -> Iterator[bytes]:
    """The strings of a list that is ours now, which ends in a null pointer; frees them and it."""
    items = ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))
    number = 0
    while (item := items[number]) is not None:
        yield ctypes.string_at(item)
        _free(item)
        number += 1
    _free(address)


def _pairs(values: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(values[::2], values[1::2], strict=True))
