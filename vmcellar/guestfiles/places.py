"""Where on its disks a guest keeps the bytes of the files below some paths: told by libguestfs's appliance.

    python -m vmcellar.guestfiles.places      reads one Question as JSON from its input, prints one Answer

It is a program of its own, so that whoever waits for it can put an end to it, and QEMU ends with it. The disks are
exports of one instant; journals are replayed in an overlay, as at the guest's next boot. The answer is for leaving
these bytes out of a backup, so a file counts only on certainty: ext2 to ext4 on a partition or a disk itself,
no hard link, no shared extent, and its first bytes compared with the disk at the place that was told.
"""

from __future__ import annotations

import hashlib
import shlex
import signal
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from vmcellar.guestfiles import mounts
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
_LABEL = "vmcellardisk"
_SECTOR = 512

_PLACE = """\
number=$(mountpoint -d {mount}) || exit 0
[ "$(stat -c %d {mount})" = "$(stat -c %d {path})" ] || exit 0
real=$(readlink -f /sys/dev/block/$number) && name=${{real##*/}} start=0
size=$(cat $real/size) || exit 0
if [ -e $real/partition ]; then start=$(cat $real/start) && disk=${{real%/*}} && disk=${{disk##*/}}; else disk=$name; fi
for label in /dev/disk/guestfs/*; do
  [ "$(readlink -f $label)" = /dev/$disk ] && echo "${{label##*/}} $start $size"
done
true
"""
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


@dataclass(frozen=True, slots=True)
class _Place:
    """A part of a disk: its target and API device, where it begins, where it ends, in bytes."""

    target: str
    device: bytes
    start: int
    size: int


class _Looker:
    """One appliance that looks for paths; its mounts are those of the guest that matter for them."""

    def __init__(self, guestfs: Guestfs, targets: Sequence[str]) -> None:
        self._guestfs = guestfs
        self._targets = targets
        self._devices = guestfs.list_devices()
        self._told: list[mounts.Told] = []
        self._mounted: dict[bytes, bytes] = {}
        self._uuids: dict[bytes, str] = {}
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
        """Mount what inspection found there, unless another file system has its UUID; the rest is asked by `doubt`."""
        try:
            uuid = self._guestfs.vfs_uuid(device)
            if self._real(point) == point and uuid and self._all_uuids().count(uuid) == 1:
                self._guestfs.mount(device, point)
                self._mounted[point], self._uuids[point] = device, uuid
        except GuestfsError as error:
            self._kept.append(f"{point.decode(errors='backslashreplace')} cannot be mounted: {error.message}")

    def _all_uuids(self) -> list[str]:
        return [self._guestfs.vfs_uuid(device) for device in self._guestfs.containers()]

    def _real(self, path: bytes) -> bytes:
        try:
            return self._guestfs.real_path(path)
        except GuestfsError:
            return b"/nothing/is/there"

    def _path(self, path: bytes) -> None:
        if why := mounts.doubt(path, self._told, self._uuids):
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
        place = self._place(path, mount)
        script = _FILES.format(
            path=_quoted(path), begin=FILE, probe=PROBE, end=END, done=DONE, most=MOST_WORDS
        )  # names of files are in no output
        found, doubtful = parse(self._guestfs.shell(script))
        counted = [file for file in found if self._is_there(file, place)]
        if kept := doubtful + len(found) - len(counted):
            self._kept.append(f"{shown}: {kept} files, or more, about which something is not certain")
        self._files += len(counted)
        offsets = [(place.start + offset, length) for file in counted for offset, length in file.extents]
        self._extents.setdefault(place.target, []).extend(offsets)

    def _check_kind(self, device: bytes, shown: str) -> None:
        """Refuse all but ext whose files share no blocks and whose journal was replayed: else its maps are old."""
        kind = self._guestfs.vfs_type(device)
        if kind not in EXT:
            raise _NotCertainError(f"{shown} is on {kind.decode() or 'something unknown'}, not on ext2, ext3 or ext4")
        incompatible, compatible = struct.unpack("<II", self._guestfs.read(device, 8, EXT_FEATURES))
        if compatible & EXT_SHARED or incompatible & EXT_RECOVER:
            raise _NotCertainError(
                f"the file system of {shown} lets files share blocks, or its journal is not replayed"
            )

    def _place(self, path: bytes, mount: bytes) -> _Place:
        words = self._guestfs.shell(_PLACE.format(path=_quoted(path), mount=_quoted(mount))).split()
        shown = path.decode(errors="backslashreplace")
        if len(words) != 3 or not words[0].startswith(_LABEL) or not (words[1] + words[2]).isdigit():
            raise _NotCertainError(f"{shown} lies on no partition of a disk itself (LVM, RAID, encryption)")
        number = ord(words[0][-1]) - ord("a")
        return _Place(self._targets[number], self._devices[number], int(words[1]) * _SECTOR, int(words[2]) * _SECTOR)

    def _is_there(self, file: FilePlaces, place: _Place) -> bool:
        """Whether the file's first bytes are where filefrag says, read past the file system; and all within it."""
        if any(offset + length > place.size for offset, length in file.extents):
            return False
        offset = place.start + file.extents[0][0]
        data = self._guestfs.read(place.device, PROBE, offset)
        return hashlib.md5(data, usedforsecurity=False).hexdigest() == file.md5


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
