"""Is a disk in use? What overwrites one asks here first, and refuses on any doubt.

QEMU's image locks show a running VM, or a tool of QEMU, also where libvirt knows nothing of it. They are looked at
here, since of a raw image qemu-nbd takes them in a way that lets another one write beside it; and they are taken when
the disk is opened (`image_server`), so that no VM starts on it. The rest are uses that leave no such lock: mounts and
other holders of a block device, a VM that was saved with its memory, images that lie on top of this one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vmcellar.errors import PermanentError
from vmcellar.restore import rbd_images
from vmcellar.restore.destinations import Destination
from vmcellar.sources.libvirt_uri import refuse_other_host

if TYPE_CHECKING:
    import libvirt

_HINT = "nothing was written; shut it down first, or choose another disk"


def machines_at(uri: str) -> Machines:
    """The domains of the libvirt at `uri`; nobody where libvirt is not installed.

    An installed libvirt that does not answer is an error: what its VMs use cannot be known. So is one of another host.
    """
    refuse_other_host(uri, "overwriting disks of this host")
    try:
        from vmcellar.sources.libvirt_connection import Connection  # noqa: PLC0415  (needs libvirt)
    except ImportError:
        return NoMachines()
    return LibvirtMachines(Connection(uri).domains())


class Machines(Protocol):
    """What is asked of libvirt, or of nothing where there is none."""

    def users(self, disk: Destination) -> Iterable[str]:
        """In words, who uses the disk now or would be broken by a change to it."""
        ...


class NoMachines:
    """A host without libvirt."""

    def users(self, disk: Destination) -> Iterable[str]:
        """Nobody."""
        del disk
        return ()


class LibvirtMachines:
    """All domains of one libvirt, those that are off, too."""

    def __init__(self, domains: Iterable[libvirt.virDomain]) -> None:
        self._domains = list(domains)

    def users(self, disk: Destination) -> Iterator[str]:
        """See Machines. Backing chains of local images are followed, volumes of storage pools looked up."""
        for domain in self._domains:
            name = domain.name()
            for source in _sources(domain.XMLDesc()):
                depth = _depth(domain, source, disk)
                if depth is None:
                    continue
                if depth > 0:
                    yield f"an image of VM {name} lies on top of it"
                elif domain.isActive():
                    yield f"VM {name} is running on it"
                elif domain.hasManagedSaveImage():
                    yield f"VM {name} was saved with its memory and would go on with it (`virsh managedsave-remove`)"


def _sources(xml: str) -> Iterator[ET.Element]:
    yield from ET.fromstring(xml).iterfind("devices/disk/source")  # noqa: S314  (libvirt's own output)


def _depth(domain: libvirt.virDomain, source: ET.Element, disk: Destination) -> int | None:
    """How deep in a domain's disk the image lies: 0 on top; None when it is not there."""
    top = source.get("file") or source.get("dev") or _volume(domain, source)
    if disk.rbd is not None:
        named = source.get("name") if source.get("protocol") == "rbd" else top
        return 0 if named == "/".join(disk.rbd) else None
    if not top or disk.path is None:
        return None
    for depth, path in enumerate(_chain(top)):
        if same_file(path, disk.path):
            return depth
    return None


def _volume(domain: libvirt.virDomain, source: ET.Element) -> str:
    """The path, or POOL/IMAGE, of a volume of a storage pool; empty for another source.

    Where the pool does not say it, PermanentError if the domain has a state of its own: the disk may be part of that.
    """
    import libvirt  # noqa: PLC0415  (whoever has a domain has it)

    pool, volume = source.get("pool"), source.get("volume")
    if not (pool and volume):
        return ""
    try:
        path: str = domain.connect().storagePoolLookupByName(pool).storageVolLookupByName(volume).path()
    except libvirt.libvirtError as error:
        if domain.isActive() or domain.hasManagedSaveImage():
            raise PermanentError(
                f"VM {domain.name()} uses volume {volume} of pool {pool}, and where that is cannot be told: {error}",
                hint=f"`virsh pool-start {pool}`, or shut the VM down; nothing was written",
            ) from error
        return ""
    return path


def _chain(top: str) -> list[Path]:
    """The image and what it lies on. Only names are read, so this may be done beside a running VM."""
    command = ["qemu-img", "info", "--force-share", "--backing-chain", "--output=json", "--", top]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermanentError("qemu-img is not installed", hint="apt-get install qemu-utils") from error
    if done.returncode != 0:
        return [Path(top)]
    return [Path(layer["filename"]) for layer in json.loads(done.stdout)]


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file or device; a path that leads nowhere is no other's."""
    try:
        first, second = one.stat(), other.stat()
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
    if first.st_rdev or second.st_rdev:
        return first.st_rdev == second.st_rdev
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def refuse_used(disk: Destination, machines: Machines) -> None:
    """PermanentError naming every use that is found."""
    used = list(machines.users(disk))
    if disk.rbd is not None:
        used += rbd_images.watchers(*disk.rbd)
    if disk.kind == "file" and disk.path is not None:
        used += [f"{device} is set up on it" for device in _loops(disk.path)]
    if used:
        raise PermanentError(f"{disk.name} is in use: {'; '.join(used)}", hint=_HINT)


def _loops(path: Path) -> Iterator[str]:
    """Loop devices whose backing file it is."""
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it was detached just then
            if same_file(Path(entry.read_text().rstrip("\n")), path):
                yield f"/dev/{entry.parts[3]}"


@contextmanager
def claimed(disk: Destination) -> Iterator[None]:
    """Hold a file or block device against every other restore, whatever name it has there, and a device against mounts.

    PermanentError when somebody uses it. The kernel refuses a device also when one of its partitions is held, or when
    it belongs to LVM, MD or device mapper.
    """
    if disk.path is None:
        yield
        return
    flags = os.O_RDONLY | os.O_EXCL if disk.kind == "block" else os.O_RDWR
    try:
        handle = os.open(disk.path, flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise PermanentError(f"{disk.name}: {error.strerror}", hint="name a disk that you may write") from error
        where = ", ".join(_mounts(disk.path)) or "LVM, MD, swap or another holder; `lsblk` shows it"
        raise PermanentError(f"{disk.name} is in use: {where}", hint=_HINT) from error
    try:
        if disk.kind == "file":
            _lock_out(handle, disk)
        if _is_locked(handle):
            raise PermanentError(f"{disk.name} is in use: a program of QEMU has it open", hint=_HINT)
        yield
    finally:
        os.close(handle)


_LOCK = "hhqqi"  # struct flock: type, whence, start, length, process; fcntl(2)
_QEMU_LOCKS = (100, 200)
"""First and how many of the bytes that QEMU locks of an image it has open: its block/file-posix.c, RAW_LOCK_*_BASE."""
_OURS = 400
"""The byte that a restore locks, beyond those."""


def _lock_out(handle: int, disk: Destination) -> None:
    """Open file description locks belong to the file, not to its name, and end with the process."""
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, _OURS, 1, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return  # a file system without locks: then QEMU's are not there either
        raise PermanentError(f"{disk.name}: another restore is writing onto it", hint=_HINT) from error


def _is_locked(handle: int) -> bool:
    """Whether any program of QEMU has the image or device open."""
    asked = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, *_QEMU_LOCKS, 0)
    try:
        found = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False
    return bool(struct.unpack(_LOCK, found)[0] != fcntl.F_UNLCK)


def _mounts(device: Path) -> Iterator[str]:
    """Where the device or a partition of it is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, folder = line.split()[:2]
        if source.startswith(str(device)):
            yield f"{source} is mounted at {folder}"
