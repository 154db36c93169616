"""The file systems inside the disks of a served point: found, named, and mounted in libguestfs's appliance.

File systems of a guest are untrusted: a kernel that mounts a crafted one may be taken over by it. So this host's kernel
never does; the appliance's does, in a virtual machine of its own that can reach nothing but the disks, read-only.
"""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vmcellar.errors import PermanentError
from vmcellar.guestfiles.library import Guestfs, GuestfsError

_LOCKED = ("crypto_LUKS", "BitLocker")
_NOT_MOUNTABLE = ("swap", "unknown", *_LOCKED)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One file system: `name` is how users name it, such as vda1, vg0/root or vda2/@home (a Btrfs subvolume)."""

    name: str
    kind: str
    label: str
    device: bytes

    @property
    def locked(self) -> bool:
        """Whether it is encrypted."""
        return self.kind in _LOCKED

    @property
    def mountable(self) -> bool:
        """Whether it can hold files that we can read."""
        return self.kind not in _NOT_MOUNTABLE


class Inside:
    """The appliance with the disks of one point. One thread, but for `cancel`; mounts one file system at a time."""

    def __init__(self, what: str, socket: Path, targets: tuple[str, ...], sectors: Mapping[str, int]) -> None:
        """`targets` are the exports on `socket`; `sectors` the size of a logical sector in bytes where it is not 512.

        `what` stands for the point in messages. PermanentError when libguestfs is not installed.
        """
        self._what = what
        self._guestfs = Guestfs()
        self._socket = socket
        self._targets = targets
        self._sectors = sectors
        self._held = ExitStack()
        self._disks: dict[bytes, str] = {}
        self._known: tuple[FileSystem, ...] | None = None

    def __enter__(self) -> Self:
        """Returns when the appliance runs, after 2 to 20 s."""
        with ExitStack() as stack:
            guestfs = stack.enter_context(self._guestfs)
            for target in self._targets:
                guestfs.add_nbd(str(self._socket), target, self._sectors.get(target, 512))
            guestfs.launch()
            self._disks = dict(zip(guestfs.list_devices(), self._targets, strict=True))
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def guestfs(self) -> Guestfs:
        """What is mounted, for those who read it."""
        return self._guestfs

    def file_systems(self) -> tuple[FileSystem, ...]:
        """All of them by name, with what is encrypted or swap; looked for once, which takes seconds."""
        if self._known is None:
            self._known = self._look()
        return self._known

    def _look(self) -> tuple[FileSystem, ...]:
        found = self._guestfs.list_filesystems()
        kinds = {device: kind for device, kind in found.items() if kind != b"unknown"}
        for device in self._guestfs.containers():
            if device not in found and (kind := self._kind(device)) in _LOCKED:
                kinds[device] = kind.encode()
        named = (
            FileSystem(self._name(device), kind.decode(), self._label(device), device) for device, kind in kinds.items()
        )
        return tuple(sorted(named, key=lambda one: one.name))

    def mount(self, name: str) -> None:
        """Mount the file system of that name, or, when it is empty, the guest's own tree.

        That is the only file system there is, else the root of the only operating system with all that it mounts.
        PermanentError when it is not clear which one is meant, or when it cannot be mounted; it tells the names.
        """
        known = self.file_systems()
        if name:
            self._mount_one(next((one for one in known if one.name == name), None), name, known)
            return
        mountable = [one for one in known if one.mountable]
        if len(mountable) == 1:
            self._mount_one(mountable[0], mountable[0].name, known)
            return
        roots = self._guestfs.inspect_os() if mountable else []
        if len(roots) != 1:
            raise self._unclear(f"has {len(roots) or 'no'} operating systems that are known", known)
        self._mount_tree(roots[0])

    def unmount(self) -> None:
        """Unmount what `mount` mounted."""
        self._guestfs.unmount()

    def _mount_one(self, wanted: FileSystem | None, name: str, known: tuple[FileSystem, ...]) -> None:
        if wanted is None:
            raise self._unclear(f"has no file system {name}", known)
        if wanted.locked:
            raise PermanentError(
                f"{self._what}: {name} is encrypted ({wanted.kind}), and vmcellar has no key for it",
                hint="`vmcellar serve` gives the disk to a program that can be given the key, such as guestfish --key",
            )
        try:
            self._guestfs.mount(wanted.device, b"/")
        except GuestfsError as error:
            raise PermanentError(f"{self._what}: {name} ({wanted.kind}) cannot be mounted: {error.message}") from error

    def _mount_tree(self, root: bytes) -> None:
        """The root, then what its fstab names; a mount that does not work leaves its folder empty, as in the guest."""
        points = self._guestfs.mount_points(root)
        for path in sorted(points, key=len):
            with contextlib.ExitStack() as stack:
                if path != b"/":
                    stack.enter_context(contextlib.suppress(GuestfsError))
                self._guestfs.mount(points[path], path)

    def _unclear(self, problem: str, known: tuple[FileSystem, ...]) -> PermanentError:
        names = ", ".join(f"{one.name} ({one.kind})" for one in known)
        first = next((one.name for one in known if one.mountable), "")
        return PermanentError(
            f"{self._what} {problem}; on its disks: {names or 'nothing that is known'}",
            hint=f"name the file system before the path, as in {first}:/" if first else "",
        )

    def _name(self, device: bytes) -> str:
        """/dev/sda1 as vda1, /dev/vg0/root as vg0/root, btrfsvol:/dev/sda2/@home as vda2/@home."""
        plain = device.removeprefix(b"btrfsvol:")
        for disk in sorted(self._disks, key=len, reverse=True):
            rest = plain.removeprefix(disk)
            if rest != plain and (not rest or rest[:1].isdigit() or rest[:1] == b"/"):
                return self._disks[disk] + rest.decode(errors="surrogateescape")
        return plain.removeprefix(b"/dev/").decode(errors="surrogateescape")

    def _kind(self, device: bytes) -> str:
        with contextlib.suppress(GuestfsError):
            return self._guestfs.vfs_type(device).decode(errors="replace")
        return ""

    def _label(self, device: bytes) -> str:
        with contextlib.suppress(GuestfsError):
            return self._guestfs.vfs_label(device).decode(errors="backslashreplace")
        return ""


def sector_sizes(domain_xml: str) -> dict[str, int]:
    """The logical sector size of each disk, in bytes, where the domain XML sets one; partition tables count in it."""
    sizes = {}
    for disk in ET.fromstring(domain_xml).iterfind("devices/disk"):  # noqa: S314  (sealed by us, from libvirt)
        target, block = disk.find("target"), disk.find("blockio")
        if target is not None and block is not None and block.get("logical_block_size"):
            sizes[target.get("dev", "")] = int(block.get("logical_block_size", "512"))
    return sizes
