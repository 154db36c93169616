"""Existing disks by the words that name them on the command line, and how QEMU opens each.

PATH              a raw or qcow2 file, or a block device
rbd:POOL/IMAGE    an RBD image; the cluster is that of $CEPH_CONF, else of /etc/ceph/ceph.conf
vol:POOL/NAME     a volume of a libvirt storage pool
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vmcellar.errors import PermanentError, UsageError
from vmcellar.memory import PAGE
from vmcellar.restore import rbd_images
from vmcellar.restore.targets import ImageFormat

Kind = Literal["file", "block", "rbd"]

_QCOW2_MAGIC = b"QFI\xfb"
_VERSION = slice(4, 8)
_FEATURES = slice(72, 80)  # incompatible features: QEMU's docs/interop/qcow2.txt, header of version 3
_EXTERNAL_DATA = 1 << 2


@dataclass(frozen=True, slots=True)
class Destination:
    """One existing disk. `name` is what it is called in messages; `path` is None for what is not of this host."""

    name: str
    kind: Kind
    format: ImageFormat
    path: Path | None
    rbd: tuple[str, str] | None = None

    @property
    def identity(self) -> str:
        """The same for every name of the same disk."""
        return str(self.path) if self.path else self.name

    def options(self) -> Mapping[str, object]:
        """QEMU's blockdev options. Host caches are passed by where they can be."""
        return {"driver": self.format, "discard": "unmap", "file": self._protocol()}

    def _protocol(self) -> dict[str, object]:
        if self.rbd:
            return {"driver": "rbd", "pool": self.rbd[0], "image": self.rbd[1], "discard": "unmap"}
        driver = "host_device" if self.kind == "block" else "file"
        direct = {"cache": {"direct": True}, "aio": "native"} if self.path and _takes_direct(self.path) else {}
        return {"driver": driver, "filename": str(self.path), "discard": "unmap", **direct}


class Volumes(Protocol):
    """Volumes of storage pools."""

    def find(self, pool: str, name: str, size: int, image_format: ImageFormat | None) -> str:
        """The words of the disk behind a volume, a path or rbd:POOL/IMAGE; a missing one is made, of `size` bytes."""
        ...


def find_destination(words: str, size: int, image_format: ImageFormat | None, volumes: Volumes) -> Destination:
    """The disk that `words` name. `image_format` overrides what the image's first bytes say.

    An RBD image or a volume that is missing is made with `size` bytes. PermanentError when anything else is not
    there, UsageError for words of no known form.
    """
    if words.startswith("vol:"):
        pool, name = _pair(words, "vol:POOL/NAME")
        return find_destination(volumes.find(pool, name, size, image_format), size, image_format, volumes)
    if words.startswith("rbd:"):
        pool, image = _pair(words, "rbd:POOL/IMAGE")
        if set(image) & set("/@"):
            raise UsageError(
                f"{words} names a namespace or a snapshot",
                hint="the form is rbd:POOL/IMAGE, or name its device",
            )
        rbd_images.make_missing(pool, image, size)
        return Destination(words, "rbd", image_format or "raw", None, (pool, image))
    return _local(Path(words), image_format)


def _local(given: Path, image_format: ImageFormat | None) -> Destination:
    path = Path(os.path.realpath(given))
    try:
        mode = path.stat().st_mode
        start = _start(path) if stat.S_ISREG(mode) or image_format == "qcow2" else b""
    except OSError as error:
        raise PermanentError(
            f"{given}: {error.strerror}", hint="--onto names a disk that is there; --to DIR makes new images"
        ) from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise UsageError(f"{given} is neither a file nor a block device", hint="name a disk image, or --to DIR")
    found: ImageFormat = "qcow2" if start.startswith(_QCOW2_MAGIC) else "raw"
    if image_format != "raw" and found == "qcow2":
        _refuse_external_data(given, start)
    return Destination(str(given), "block" if stat.S_ISBLK(mode) else "file", image_format or found, path)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_FEATURES.stop)


def _refuse_external_data(given: Path, start: bytes) -> None:
    """The guest of a raw disk may have written this header, and would have us write into a file that it names."""
    if int.from_bytes(start[_VERSION]) > 2 and int.from_bytes(start[_FEATURES]) & _EXTERNAL_DATA:  # 2 has no such field
        raise PermanentError(
            f"{given} looks like a qcow2 image that keeps its data in another file",
            hint="restore with --to DIR instead; if its guest wrote that header onto a raw disk, give --format raw; "
            "nothing was written",
        )


def _pair(words: str, form: str) -> tuple[str, str]:
    pool, slash, name = words.partition(":")[2].partition("/")
    if not (pool and slash and name):
        raise UsageError(f"{words} does not name a disk", hint=f"the form is {form}")
    return pool, name


def _takes_direct(path: Path) -> bool:
    """Whether QEMU may pass by the page cache: a file must then end on a block's border, or QEMU refuses to write."""
    try:
        if path.is_file() and path.stat().st_size % PAGE:
            return False
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True
