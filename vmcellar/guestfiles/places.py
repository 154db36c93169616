"""Where on its disks a guest keeps the bytes of the files below some paths: told by libguestfs's appliance.

    python -m vmcellar.guestfiles.places      reads one Question as JSON from its input, prints one Answer

It is a program of its own, so that whoever waits for it can put an end to it, and QEMU ends with it. The disks are
exports of one instant; journals are replayed in an overlay, as at the guest's next boot. The answer is for leaving
these bytes out of a backup, so a file counts only on certainty: ext2 to ext4 or XFS on a partition, a disk itself or a
linear logical volume, no hard link, no shared extent, and its first bytes compared with the disk at the place told.
"""

from __future__ import annotations

import hashlib
import itertools
import shlex
import signal
import struct
import sys
from collections.abc import Sequence
from functools import cached_property

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from vmcellar.guestfiles import mounts, parts
from vmcellar.guestfiles.filefrag import DONE, END, FILE, PROBE, FilePlaces, parse
from vmcellar.guestfiles.library import Guestfs, GuestfsError

LIMIT_SECONDS = 300
"""Where KVM is there and does not work, an appliance may never start; and a VM is held meanwhile."""
EXT = (b"ext2", b"ext3", b"ext4")
MOST_WORDS = 3 << 20
"""Bytes of words of one path that libguestfs's protocol lets through: about 8,000 files."""
EXT_FEATURES, EXT_RECOVER, EXT_SHARED = 1024 + 96, 0x4, 0x4000
"""Where ext's superblock has its incompatible features, of which one is that of a journal to be replayed, and behind
them the read-only-compatible ones, of which one is that of files that share blocks. Source: ext4's documentation.
"""
XFS, XFS_MAGIC, XFS_HEAD = b"xfs", b"XFSB", ">4sIQQQ16sQ"
"""The head of XFS's superblock: magic, size of a block, blocks of data, blocks and extents of a realtime part, UUID,
where the log begins (0: on a device of its own). Source: XFS Algorithms & Data Structures, "Superblocks".
"""
_LABEL = "vmcellardisk"

_FILES = """\
(find {path} -xdev -type f -links 1 -size +63k -exec sh -c '
for file do
  words=$(filefrag -v /proc/self/fd/0 < "$file") || continue
  printf "%s %s\\n%s\\n%s\\n" "{begin}" "$(head -c {probe} "$file" | md5sum)" "$words" "{end}"
done' sh {{}} + && echo {done}) | head -c {most}
"""


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Question:
    """`disks` are the exports on `socket`, by target, with the size of their logical sectors in bytes."""

    socket: str
    disks: dict[str, int]
    paths: tuple[str, ...]


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Answer:
    """`extents` are (offset, length) in bytes, by target; `kept` says of what is kept though it was named, and why."""

    extents: dict[str, tuple[tuple[int, int], ...]]
    files: int
    kept: tuple[str, ...]


class _NotCertainError(Exception):
    """Why the files below a path are kept."""


class _Looker:
    """One appliance that looks for paths; its mounts are those of the guest that matter for them."""

    def __init__(self, guestfs: Guestfs, targets: Sequence[str]) -> None:
        self._guestfs = guestfs
        self._targets = targets
        self._devices = guestfs.list_devices()
        self._told: list[mounts.Told] = []
        self._mounted: dict[bytes, bytes] = {}
        self._names: dict[bytes, frozenset[str]] = {}
        self._files = 0
        self._kept: list[str] = []
        self._extents: dict[str, list[tuple[int, int]]] = {}

    def look(self, paths: Sequence[str]) -> Answer:
        """Look for all; a path about which anything is not certain is kept, and said so."""
        self._mount(paths)
        for path in paths:
            try:
                self._path(path.encode())
            except (_NotCertainError, GuestfsError) as error:
                self._kept.append(f"{path}: {error}")
        extents = {target: tuple(sorted(each)) for target, each in self._extents.items()}
        return Answer(extents, self._files, tuple(self._kept))

    def _mount(self, paths: Sequence[str]) -> None:
        roots = self._guestfs.inspect_os()
        if len(roots) != 1:
            raise GuestfsError(f"{len(roots) or 'no'} operating systems are known on its disks, so none is looked into")
        points = self._guestfs.mount_points(roots[0])
        self._guestfs.unmount()
        self._guestfs.mount(roots[0], b"/")
        self._mounted = {b"/": roots[0]}
        self._told = mounts.partitions(self._guestfs.partition_types())
        if b"fstab" in self._guestfs.names(b"/etc"):
            self._told += mounts.fstab(self._guestfs.read_text(b"/etc/fstab"))
        for folder in mounts.UNIT_FOLDERS:
            if self._guestfs.is_folder(self._real(folder)):
                self._told += mounts.units(self._guestfs.names(folder))
        wanted = [path.encode() for path in paths]
        for point in sorted(points, key=len):
            if point != b"/" and any(mounts.within(one, point) or mounts.within(point, one) for one in wanted):
                self._mount_one(points[point], point)

    def _mount_one(self, device: bytes, point: bytes) -> None:
        """Mount what inspection found there, if only it can be meant; the rest is asked by `doubt`."""
        try:
            names = self._names_of(device)
            if self._real(point) == point and names:
                self._guestfs.mount(device, point)
                self._mounted[point], self._names[point] = device, names
        except GuestfsError as error:
            self._kept.append(f"{point.decode(errors='backslashreplace')} cannot be mounted: {error.message}")

    def _names_of(self, device: bytes) -> frozenset[str]:
        """By which names an fstab may mean this device and no other."""
        every, uuid = self._guestfs.containers(), self._guestfs.vfs_uuid(device)
        names = {uuid.lower()} if self._all_uuids.count(uuid.lower()) == 1 else set()
        volume = mounts.volume(device) if every.count(device) == 1 else ""
        return frozenset(names | {volume} - {""})

    @cached_property
    def _all_uuids(self) -> list[str]:
        return [uuid.lower() for device in self._guestfs.containers() if (uuid := self._guestfs.vfs_uuid(device))]

    def _real(self, path: bytes) -> bytes:
        try:
            return self._guestfs.real_path(path)
        except GuestfsError:
            return b"/nothing/is/there"

    def _path(self, path: bytes) -> None:
        if why := mounts.doubt(path, self._told, self._names):
            raise _NotCertainError(why)
        if self._guestfs.real_path(path) != path:
            raise _NotCertainError("a symbolic link leads there: name the path that it leads to")
        below = [point for point in self._mounted if point != path and mounts.within(point, path)]
        for one in (path, *below):
            self._files_below(one)

    def _files_below(self, path: bytes) -> None:
        mount = mounts.holder(path, self._mounted)
        shown = path.decode(errors="backslashreplace")
        self._check_kind(self._mounted[mount], shown)
        device = self._device(path, mount)
        script = _FILES.format(
            path=_quoted(path), begin=FILE, probe=PROBE, end=END, done=DONE, most=MOST_WORDS
        )  # names of files are in no output
        found, doubtful = parse(self._guestfs.shell(script))
        counted = [places for file in found if (places := self._places(file, device))]
        if kept := doubtful + len(found) - len(counted):
            self._kept.append(f"{shown}: {kept} files, or more, about which something is not certain")
        self._files += len(counted)
        for label, offset, length in itertools.chain.from_iterable(counted):
            self._extents.setdefault(self._targets[_number(label)], []).append((offset, length))

    def _check_kind(self, device: bytes, shown: str) -> None:
        """Refuse file systems whose places may not be the device's own."""
        kind = self._guestfs.vfs_type(device)
        if kind == XFS:
            magic, _, _, realtime, extents, _, log = struct.unpack(XFS_HEAD, self._guestfs.read(device, 56, 0))
            if magic != XFS_MAGIC or realtime or extents or not log:
                raise _NotCertainError(f"the file system of {shown} has a realtime part, or its log on another device")
        elif kind in EXT:
            incompatible, compatible = struct.unpack("<II", self._guestfs.read(device, 8, EXT_FEATURES))
            if compatible & EXT_SHARED or incompatible & EXT_RECOVER:
                raise _NotCertainError(
                    f"the file system of {shown} lets files share blocks, or its journal is not replayed"
                )
        else:
            raise _NotCertainError(f"{shown} is on {kind.decode() or 'something unknown'}, not on ext2 to ext4 or XFS")

    def _device(self, path: bytes, mount: bytes) -> parts.Device:
        device = parts.parse(self._guestfs.shell(parts.SCRIPT.format(path=_quoted(path), mount=_quoted(mount))))
        shown = path.decode(errors="backslashreplace")
        if device is None or not all(part.label.startswith(_LABEL) for part in device.parts):
            raise _NotCertainError(
                f"{shown} is on no partition, disk or linear logical volume, but RAID, encryption, a thin volume, ..."
            )
        if device.volume and len(self._all_uuids) != len(set(self._all_uuids)):
            raise _NotCertainError(f"{shown} is on a logical volume, and two devices of the VM have the same UUID")
        return device

    def _places(self, file: FilePlaces, device: parts.Device) -> list[tuple[str, int, int]]:
        """Where the file is on the disks; nothing unless its first bytes, read past the file system, are there."""
        places = device.on_disks(file.extents)
        if not places or places[0][2] < PROBE:
            return []
        label, offset, _ = places[0]
        data = self._guestfs.read(self._devices[_number(label)], PROBE, offset)
        return places if hashlib.md5(data, usedforsecurity=False).hexdigest() == file.md5 else []


def _number(label: str) -> int:
    return ord(label[-1]) - ord("a")


def _quoted(path: bytes) -> str:
    return shlex.quote("/sysroot" + path.decode())


def look(question: Question) -> Answer:
    """Start the appliance and ask; GuestfsError when it fails, and when no path at all can be looked for."""
    with Guestfs() as guestfs:
        for number, (target, sector) in enumerate(question.disks.items()):
            guestfs.add_nbd(question.socket, target, sector, _LABEL + chr(ord("a") + number))
        guestfs.launch()
        return _Looker(guestfs, tuple(question.disks)).look(question.paths)


def main() -> int:
    """Answer the question on the standard input."""
    signal.alarm(LIMIT_SECONDS)
    question = TypeAdapter(Question).validate_json(sys.stdin.buffer.read())
    try:
        found = look(question)
    except GuestfsError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(TypeAdapter(Answer).dump_json(found).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
