"""The journal of disks that are being overwritten: a small file per disk in the state directory.

It is durable before the first byte is written and goes when the last one is durable. So a disk that a kill left half
the old and half the new is named, and whoever overwrites the same disk again finishes it. The file is also the lock:
two processes never write onto one disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vmcellar.errors import PermanentError
from vmcellar.folders import sync_folder


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A disk that is being made, or was left half, a disk of a point. `started` is seconds since the epoch."""

    disk: str
    point: str
    vm: str
    target: str
    started: float


WAIT_SECONDS = 10.0
"""How long the lock of a process that was killed is waited for: its helper writes what it was given, then ends."""

_POLL_SECONDS = 0.05


class Journal:
    """The entry of one disk, held by this process, and by the helper that inherits `lock`."""

    def __init__(self, path: Path, handle: int) -> None:
        self.lock = handle
        self._path = path
        self._handle = handle
        self.before = _parse(os.pread(handle, 1 << 16, 0))
        """What an earlier restore left half; None when the disk is whole."""

    def begin(self, entry: Unfinished) -> None:
        """Say durably that the disk is from now on neither the old nor the new one."""
        data = json.dumps(asdict(entry), indent=1).encode()
        os.pwrite(self._handle, data, 0)
        os.ftruncate(self._handle, len(data))
        os.fsync(self._handle)
        sync_folder(self._path.parent)

    def end(self) -> None:
        """Say that the disk is whole."""
        self._path.unlink()
        sync_folder(self._path.parent)


@contextmanager
def journal(state: Path, identity: str, name: str) -> Iterator[Journal]:
    """Hold the entry of the disk `identity`; PermanentError when another process is writing onto it.

    An entry without content is removed at the end: nothing was begun.
    """
    folder = state / "unfinished"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.json"
    handle = _locked(path, name)
    try:
        held = Journal(path, handle)
        yield held
    finally:
        if os.fstat(handle).st_nlink and not os.fstat(handle).st_size:
            path.unlink()
        os.close(handle)


def unfinished(state: Path) -> list[Unfinished]:
    """All disks that are half, or being written right now."""
    found = (_parse(path.read_bytes()) for path in sorted((state / "unfinished").glob("*.json")))
    return [entry for entry in found if entry is not None]


def _locked(path: Path, name: str) -> int:
    """The entry's file, made if need be, under its lock; again when the holder before us has just removed it."""
    limit = time.monotonic() + WAIT_SECONDS
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            if time.monotonic() > limit:
                raise PermanentError(
                    f"{name}: another restore is writing onto it", hint="wait until it ends; nothing was written"
                ) from error
            time.sleep(_POLL_SECONDS)
            continue
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)


def _parse(data: bytes) -> Unfinished | None:
    """None for an empty entry. A torn one was written over an earlier one, so its disk is half as well."""
    if not data:
        return None
    try:
        return Unfinished(**json.loads(data))
    except (ValueError, TypeError):
        return Unfinished("unknown", "unknown", "unknown", "unknown", 0.0)


def when(entry: Unfinished) -> str:
    """The time of an entry in words."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(entry.started))
