"""Files that nobody deletes, changes or renames until a time: the immutable flag of ext4, xfs, btrfs and others.

The kernel refuses all of that to everybody, root too, for as long as the flag is there. It knows no time: until when is
an extended attribute, and vmcellar itself keeps to it. Root of this host can take the flag off (`chattr -i`), so it
stops mistakes, scripts, `rsync --delete` and programs without that right, not an intruder who is root.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmcellar.errors import PermanentError

_GET, _SET = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of <linux/fs.h>, 64 bits
_IMMUTABLE = 0x10  # FS_IMMUTABLE_FL
_UNTIL = "user.vmcellar.locked-until"
_LONG = struct.Struct("l")
_UNKNOWN = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def until(path: Path) -> float:
    """Until when the file is locked, in seconds since 1970; 0 if it does not carry the flag. Raises OSError."""
    with _open(path) as file:
        if not _flags(file) & _IMMUTABLE:
            return 0.0
        with suppress(OSError, ValueError):
            return float(os.getxattr(file, _UNTIL))
    return float("inf")  # somebody else's flag: not ours to take off


def lock(path: Path, when: float) -> None:
    """Lock the file until then, durably; never for a shorter time than it is.

    PermanentError where the file system has no such flag or this process may not set it. A crash may leave the file
    without a lock; `until` tells.
    """
    was = until(path)
    if was >= when:
        return
    try:
        with _open(path) as file:
            if was:
                _set(file, _flags(file) & ~_IMMUTABLE)
            os.setxattr(file, _UNTIL, repr(when).encode())
            _set(file, _flags(file) | _IMMUTABLE)
            os.fsync(file)
    except OSError as error:
        raise _cannot(path, error) from error


@functools.cache
def check(folder: Path) -> None:
    """PermanentError unless files in this folder can be locked; looks once."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file:
        path = Path(file.name)
        lock(path, 1.0)
        unlock(path)


def unlock(path: Path) -> None:
    """Take the flag off. Raises OSError."""
    with _open(path) as file:
        flags = _flags(file)
        if flags & _IMMUTABLE:
            _set(file, flags & ~_IMMUTABLE)


def attack(path: Path) -> str:
    """Overwrite, rename and delete the file, without taking the flag off first; what succeeded, else empty."""
    for name, attempt in (
        ("it was overwritten", lambda: path.write_bytes(b"")),
        ("it was renamed", lambda: path.rename(path.with_name(f"{path.name}-gone"))),
        ("it was deleted", path.unlink),
    ):
        with suppress(OSError):
            attempt()
            return name
    return ""


def _cannot(path: Path, error: OSError) -> PermanentError:
    why = "this process may not set it" if error.errno == errno.EPERM else "its file system does not have it"
    hint = "run as root" if error.errno == errno.EPERM else "use ext4, xfs or btrfs, or take `lock:` from this tier"
    return PermanentError(f"{path}: cannot be made immutable: {why} ({error.strerror})", hint=hint)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield file
    finally:
        os.close(file)


def _flags(file: int) -> int:
    try:
        data = fcntl.ioctl(file, _GET, _LONG.pack(0))
    except OSError as error:
        if error.errno in _UNKNOWN:
            return 0
        raise
    return int(_LONG.unpack(data)[0])


def _set(file: int, flags: int) -> None:
    fcntl.ioctl(file, _SET, _LONG.pack(flags))
