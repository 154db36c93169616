"""The file systems inside the disks of a served point: found, named, and mounted in libguestfs's appliance.

File systems of a guest are untrusted: a kernel that mounts a crafted one may be taken over by it. So this host's kernel
never does; the appliance's does, in a virtual machine of its own that can reach nothing but the disks, read-only.
"""

from __future__ import annotations

import contextlib
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vmcellar.errors import PermanentError
from vmcellar.guestfiles.library import SUBVOLUME, Guestfs, GuestfsError

_LOCKED = ("crypto_LUKS", "BitLocker")
_MEMBERS = ("LVM2_member", "linux_raid_member")
"""What holds parts of other devices, which are listed themselves."""
_SEVERAL = ("btrfs", *_MEMBERS)
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
        self._opened: dict[bytes, str] = {}
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

    def unlock(self, keys: Mapping[str, bytes]) -> None:
        """Open encrypted partitions and volumes by name and passphrase; what is in them then takes their names.

        PermanentError when one is not encrypted, or its passphrase is another.
        """
        for name, key in keys.items():
            known = {one.name: one for one in self.file_systems()}
            if name not in known or not known[name].locked:
                locked = ", ".join(one.name for one in known.values() if one.locked)
                raise PermanentError(
                    f"{self._what}: {name} is not encrypted", hint=f"what is: {locked}" if locked else "nothing is"
                )
            try:
                device = self._guestfs.open_encrypted(known[name].device, key, f"opened{len(self._opened)}")
            except GuestfsError as error:
                raise PermanentError(
                    f"{self._what}: the passphrase given for {name} does not open it: {error.message}",
                    hint="it is the whole file but for newlines at its end",
                ) from error
            self._opened[device] = name
            self._known = self._with_opened(device, known)

    def _with_opened(self, device: bytes, known: Mapping[str, FileSystem]) -> tuple[FileSystem, ...] | None:
        """What is known with the content of an opened device; None when that may be several and is to be looked for."""
        kind = self._kind(device)
        if kind in _MEMBERS:
            self._guestfs.scan_volumes()
        if kind in _SEVERAL:
            return None
        name = self._opened[device]
        return tuple({**known, name: FileSystem(name, kind or "unknown", self._label(device), device)}.values())

    def file_systems(self) -> tuple[FileSystem, ...]:
        """All of them by name, with what is encrypted or swap; looked for once, which takes seconds."""
        if self._known is None:
            self._known = self._look()
        return self._known

    def _look(self) -> tuple[FileSystem, ...]:
        kinds = {
            device: kind.decode() for device, kind in self._guestfs.list_filesystems().items() if kind != b"unknown"
        }
        for device in (*self._guestfs.containers(), *self._opened):
            if device not in kinds and (kind := self._kind(device)) and (kind in _LOCKED or device in self._opened):
                kinds[device] = kind
        opened = self._opened.values()
        named = (
            FileSystem(self._name(device), kind, self._label(device), device)
            for device, kind in kinds.items()
            if kind not in _MEMBERS and not (kind in _LOCKED and self._name(device) in opened)
        )
        return tuple(sorted(named, key=lambda one: one.name))

    def mount(self, name: str) -> None:
        """Mount the file system of that name, or, when it is empty, the guest's own tree.

        That is the only file system there is, else the root of the only operating system with all that it mounts.
        PermanentError when it is not clear which one is meant, or when it cannot be mounted; it tells the names. A name
        is tried as it is: what else there is, which takes long to find, is looked for when that fails.
        """
        if name and self._known is None:
            with contextlib.suppress(GuestfsError):
                self._guestfs.mount(self._device(name), b"/")
                return
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
                f"{self._what}: {name} is encrypted ({wanted.kind})",
                hint=f"give its passphrase in a file: --key {name}=FILE",
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

    def _device(self, name: str) -> bytes:
        """The device, or Btrfs subvolume, that `_name` would give this name."""
        for device, target in sorted(self._disks.items(), key=lambda pair: len(pair[1]), reverse=True):
            disk, rest = name[: len(target)], os.fsencode(name[len(target) :])
            if disk == target and (not rest or rest[:1].isdigit() or rest[:1] == b"/"):
                return (SUBVOLUME if b"/" in rest else b"") + device + rest
        return b"/dev/" + os.fsencode(name)

    def _name(self, device: bytes) -> str:
        """/dev/sda1 as vda1, /dev/vg0/root as vg0/root, btrfsvol:/dev/sda2/@home as vda2/@home."""
        plain = device.removeprefix(SUBVOLUME)
        for opened, name in self._opened.items():
            rest = plain.removeprefix(opened)
            if rest != plain and (not rest or rest[:1] == b"/"):
                return name + rest.decode(errors="surrogateescape")
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
