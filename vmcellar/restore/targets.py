"""Where restored disks are written: raw files and qcow2 images, each under a temporary name until it is whole.

A target is a new, empty image, so what nobody writes reads as zero. `write` may be called by any number of threads at
once, in any order, for ranges that do not overlap. `finish` makes the image durable; giving it its final name is the
caller's part, once all disks are whole. A crash leaves only a file under the temporary name, which the next restore
into the folder replaces.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vmcellar.errors import IntegrityError, PermanentError, TransientError, UsageError, VmcellarError
from vmcellar.memory import PAGE, BufferPool, is_aligned
from vmcellar.restore.qcow2 import CLUSTER, CLUSTERS, Qcow2Layout, UsedClusters

ImageFormat = Literal["raw", "qcow2"]
Preallocation = Literal["off", "metadata", "falloc", "full"]
"""What of a new image takes space from the start, as `qemu-img create -o preallocation=` has it."""


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How a new image is made. `cluster` is of qcow2 alone, in bytes."""

    format: ImageFormat = "qcow2"
    preallocation: Preallocation = "off"
    cluster: int = CLUSTER

    def __post_init__(self) -> None:
        if self.cluster not in CLUSTERS:
            raise UsageError(f"--cluster {self.cluster}: a power of two from {CLUSTERS[0]} to {CLUSTERS[-1]} bytes")
        if self.format == "raw" and self.preallocation == "metadata":
            raise UsageError("--prealloc metadata: a raw image has no metadata", hint="off, falloc or full")

    @property
    def takes_all(self) -> bool:
        """Whether the image takes all of its space from the start."""
        return self.preallocation in ("falloc", "full")


_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
"""Python's own would write zeroes where the file system cannot. fallocate(2)."""

BOUNCE_BYTES = 1 << 20
"""One chunk at most; what is not aligned in memory passes through such a buffer on the way to O_DIRECT."""


class DiskTarget(Protocol):
    """One disk that is being written: a new image, or one that is there (`differ`). Threads: see the module text."""

    def write(self, offset: int, data: memoryview) -> None:
        """Put `data` at byte `offset`.

        PermanentError when the file system is full, TransientError on other failures.
        """

    def finish(self) -> None:
        """Make everything written durable and let the image go; PermanentError or TransientError when that failed."""

    def abort(self) -> None:
        """Let everything go and remove a temporary file; harmless after `finish` and when called twice."""


class ImageTarget(DiskTarget, Protocol):
    """A new image that may be left in the middle, and gone on with by another process."""

    def sync(self) -> None:
        """Make everything durable that was written so far; PermanentError or TransientError when that failed."""

    def leave(self) -> None:
        """Let the image go as it is, under its temporary name; harmless after `finish` and when called twice."""


class RawTarget:
    """A raw file, sparse unless preallocated, written with O_DIRECT from aligned buffers.

    Buffered writes cost 0.65 CPU seconds per GB for first-touch page cache, direct ones 0.03. The
    unaligned tail of an odd-sized disk, and everything where the file system refuses O_DIRECT, goes through the page
    cache; no page gets both.
    """

    def __init__(self, partial: Path, size: int, preallocation: Preallocation = "off", begun: bool = False) -> None:
        """With "full", zeroes are written over the whole file first, which takes as long as the data once more.

        One that was `begun` is there, of this size, and stays as it is.
        """
        self.partial = partial
        self._buffers = BufferPool(BOUNCE_BYTES)
        self._fd = self._direct = -1
        try:
            if begun:
                self._fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                self._refuse_other(size)
            else:
                self._create(size, preallocation)
            self._direct = _open_direct(partial)
            if preallocation == "full" and not begun:
                self._write_zeroes(size)
        except OSError as error:
            self._close() if begun else self.abort()
            raise write_error(partial, error) from error
        except VmcellarError:
            self._close() if begun else self.abort()
            raise

    def reserve(self, runs: Iterable[tuple[int, int]]) -> None:
        """Have the file system give these (offset, length) space, which reads as zero until it is written.

        Writes into holes are let in one at a time, and each finds its own space: a quarter of a restore's time.
        Only asked for, as some file systems cannot; where they cannot do O_DIRECT, it would cost more than it brings.
        """
        if self._direct < 0:
            return
        for offset, length in runs:
            if _fallocate(self._fd, 0, ctypes.c_int64(offset), ctypes.c_int64(length)):
                problem = ctypes.get_errno()
                if problem in (errno.EOPNOTSUPP, errno.ENOSYS):
                    return
                raise write_error(self.partial, OSError(problem, os.strerror(problem)))

    def _refuse_other(self, size: int) -> None:
        if os.fstat(self._fd).st_size != size:
            raise PermanentError(
                f"{self.partial} is not as the restore left it", hint="remove its folder and restore again"
            )

    def _create(self, size: int, preallocation: Preallocation) -> None:
        self.partial.unlink(missing_ok=True)
        self._fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, size)
        if preallocation in ("falloc", "full") and size:
            os.posix_fallocate(self._fd, 0, size)

    def _write_zeroes(self, size: int) -> None:
        zeroes = memoryview(bytes(BOUNCE_BYTES))
        for offset in range(0, size, BOUNCE_BYTES):
            self.write(offset, zeroes[: size - offset])

    def write(self, offset: int, data: memoryview) -> None:
        """See DiskTarget."""
        aligned = len(data) - len(data) % PAGE
        if self._direct < 0 or offset % PAGE:
            aligned = 0
        try:
            if aligned:
                self._write_direct(offset, data[:aligned])
            _write_all(self._fd, data[aligned:], offset + aligned)
        except OSError as error:
            raise write_error(self.partial, error) from error

    def _write_direct(self, offset: int, data: memoryview) -> None:
        if is_aligned(data):
            _write_all(self._direct, data, offset)
            return
        with self._buffers.buffer() as buffer:
            for start in range(0, len(data), BOUNCE_BYTES):
                piece = data[start : start + BOUNCE_BYTES]
                buffer[: len(piece)] = piece
                _write_all(self._direct, buffer[: len(piece)], offset + start)

    def sync(self) -> None:
        """See ImageTarget."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise write_error(self.partial, error) from error

    def finish(self) -> None:
        """See DiskTarget."""
        self.sync()
        self._close()

    def leave(self) -> None:
        """See ImageTarget."""
        self._close()

    def abort(self) -> None:
        """See DiskTarget."""
        if self._fd >= 0:
            self._close()
            self.partial.unlink(missing_ok=True)

    def _close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1


class Qcow2Target:
    """A qcow2 image, laid out beforehand (`vmcellar.restore.qcow2`) and written as a raw file is.

    Through a qemu-nbd the same took half as much CPU time again, and its clusters lay in the order of arrival. QEMU
    still is the judge: `finish` lets `qemu-img check` look at the image and raises IntegrityError when it finds fault.
    """

    def __init__(
        self, partial: Path, used: UsedClusters, preallocation: Preallocation = "off", begun: bool = False
    ) -> None:
        self.partial = partial
        if preallocation != "off":
            used.add_all()
        self._layout = Qcow2Layout(used)
        self._file = RawTarget(partial, self._layout.file_size, preallocation, begun)
        if begun or preallocation == "metadata":  # all of the disk has a place then, and takes no space
            return
        try:
            self._file.reserve([(0, self._layout.file_size)])
        except VmcellarError:
            self.abort()
            raise

    def write(self, offset: int, data: memoryview) -> None:
        """See DiskTarget. TransientError for a range that was not announced as used."""
        try:
            place = self._layout.place(offset)
        except KeyError as error:
            raise TransientError(
                f"{self.partial}: byte {offset} was not readable when the restore was planned", hint="restore again"
            ) from error
        self._file.write(place, data)

    def finish(self) -> None:
        """See DiskTarget."""
        for place, data in self._layout.metadata():
            self._file.write(place, memoryview(data))
        self._file.finish()
        try:
            check_image(self.partial)
        except VmcellarError:
            self.partial.unlink(missing_ok=True)
            raise

    def sync(self) -> None:
        """See ImageTarget."""
        self._file.sync()

    def leave(self) -> None:
        """See ImageTarget."""
        self._file.leave()

    def abort(self) -> None:
        """See DiskTarget."""
        self._file.abort()


def open_target(options: ImageOptions, partial: Path, used: UsedClusters, begun: bool = False) -> ImageTarget:
    """A new, empty image of `used.size` bytes under the temporary name `partial`; a leftover of that name is replaced,
    unless this is the one that was `begun` with the same options and clusters.

    Only what `used` tells will be written; its clusters are those of the image.
    """
    if options.format == "raw":
        target = RawTarget(partial, used.size, options.preallocation, begun)
        try:
            target.reserve(() if begun else used.runs())
        except VmcellarError:
            target.abort()
            raise
        return target
    return Qcow2Target(partial, used, options.preallocation, begun)


def check_image(path: Path) -> None:
    """Let QEMU check a qcow2 image's metadata; IntegrityError with its words when it finds fault."""
    command = ["qemu-img", "check", "-f", "qcow2", "--", str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermanentError(
            "qemu-img is not installed", hint="apt-get install qemu-utils, or use --format raw"
        ) from error
    if done.returncode != 0:
        raise IntegrityError(
            f"{path}: qemu-img check finds fault with the restored image: {(done.stderr or done.stdout).strip()}",
            hint="restore with --format raw, and report this as a bug",
        )


def write_error(path: Path, error: OSError) -> PermanentError | TransientError:
    """What a failed write to `path` means to the caller."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return PermanentError(
            f"no space to restore into {path.parent}: {error.strerror}",
            hint="free space there or restore to another folder; partial files were removed",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return PermanentError(f"cannot write {path}: {error.strerror}", hint="restore to a folder that you may write")
    return TransientError(f"cannot write {path}: {error}", hint="check the file system it lies on, then restore again")


def _open_direct(path: Path) -> int:
    """A descriptor for O_DIRECT writes, -1 where the file system refuses them."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return -1


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
