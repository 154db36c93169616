"""The landing zone: where disk bytes lie between the source and the packs, so that the VM is let go early.

Files on tmpfs or SSD under a budget in bytes that pushes back on export. They are written with `pwrite` from small
pooled buffers (first touch of a mapped page costs five times more) and read back into pooled buffers.

On tmpfs a landing survives the death of our process but not a reboot; a reboot ends the guest's instant, too.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from vmcellar.errors import PermanentError, TransientError
from vmcellar.progress import CancelToken

POLL_SECONDS = 0.5
"""How often a waiting export looks whether it was cancelled; woken at once when space is given back."""


class LandingZone:
    """Landing files under one folder and one budget.

    The budget is counted per process, since a run lives in one; another process's landings show up as a full file
    system. Any number of threads may use it. `reserve` blocks, so an export waits while compress empties the zone.
    """

    def __init__(self, path: Path, budget: int) -> None:
        self.path = path
        self.budget = budget
        self._held: dict[Path, int] = {}
        self._changed = threading.Condition()

    def file(self, run_id: str, target: str, segment: int) -> Path:
        """Where this segment lands."""
        return self.path / run_id / f"{target}.{segment:04d}.land"

    def writer(self, path: Path) -> LandingWriter:
        """A writer of this landing; PermanentError when a folder on the way is not ours alone.

        Where anybody may write, as in /dev/shm, another user could have made it first, to read disks or to redirect
        what we write.
        """
        self.path.parent.parent.mkdir(parents=True, exist_ok=True)
        _check_folder(self.path.parent, shared=True)
        _check_folder(self.path)
        _check_folder(path.parent)
        return LandingWriter(path)

    def reserve(self, path: Path, size: int, cancel: CancelToken, watch: Callable[[], None] = lambda: None) -> None:
        """Wait until `size` bytes of the budget are free and take them for `path`; CancelledError when stopped.

        `watch` is called now and then while it waits; what it raises ends the waiting. A single segment larger than
        the budget goes alone, rather than waiting for ever.
        """
        with self._changed:
            self._held.pop(path, None)
            while self._held and sum(self._held.values()) + size > self.budget:
                cancel.check()
                watch()
                self._changed.wait(POLL_SECONDS)
            self._held[path] = size

    def shrink(self, path: Path, size: int) -> None:
        """Give back what the segment turned out not to need."""
        with self._changed:
            if path in self._held:
                self._held[path] = size
                self._changed.notify_all()

    def drop(self, path: Path) -> None:
        """Remove a landing and give its budget back; harmless when it is gone."""
        path.unlink(missing_ok=True)
        with self._changed:
            self._held.pop(path, None)
            self._changed.notify_all()

    def disown(self, run_id: str) -> None:
        """Count a run's landings no more, and leave them: nobody empties them soon, and exports of other VMs would wait
        for that with their VM held.
        """
        with self._changed:
            self._held = {path: size for path, size in self._held.items() if path.parent.name != run_id}
            self._changed.notify_all()

    def drop_run(self, run_id: str) -> None:
        """Remove all that a run has landed."""
        self.disown(run_id)
        folder = self.path / run_id
        if folder.is_dir():
            for path in list(folder.iterdir()):
                self.drop(path)
            folder.rmdir()

    def runs(self) -> list[str]:
        """The ids of all runs that have something here."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir()) if self.path.is_dir() else []


class LandingWriter:
    """Appends chunks to one landing file; any thread, each `append` gets its own place.

    One thread writes at a time: the kernel allows no more per file, and its waiting threads would spin (measured: a
    tenth of all CPU time of a full backup).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._lock = threading.Lock()
        path.unlink(missing_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def append(self, data: memoryview) -> int:
        """Write `data`; returns its offset in the file.

        PermanentError when the zone's file system is full; the guest is not touched by that.
        """
        with self._lock:
            offset = self.size
            try:
                while data:
                    written = os.pwrite(self._fd, data, self.size)
                    self.size, data = self.size + written, data[written:]
            except OSError as error:
                raise _landing_error(self.path, error) from error
        return offset

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LandingReader:
    """Reads chunks of one landing file; any thread. Close it, or use it in a `with` block.

    PermanentError when the file is missing or shorter than `size`.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PermanentError(f"landing {path} cannot be read: {error}", hint="run the backup again") from error
        if os.fstat(self._fd).st_size < size:
            os.close(self._fd)
            raise PermanentError(f"landing {path} is shorter than what was landed", hint="run the backup again")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`: a copy into re-used memory costs less than mapping each page once."""
        if os.preadv(self._fd, [buffer], offset) != len(buffer):
            raise PermanentError(f"landing {self.path} ends before byte {offset + len(buffer)}", hint="run it again")


def _check_folder(folder: Path, *, shared: bool = False) -> None:
    """Make the folder if it is missing; PermanentError unless what lies in it is safe from other users.

    A `shared` one may be open to all where each can remove only what is his own, as a tmpfs is when it is mounted.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    owners = {0, os.geteuid()} if shared else {os.geteuid()}
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (shared and found.st_mode & stat.S_ISVTX)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or writable:
        raise PermanentError(
            f"landing zone: other users may change what lies in {folder}",
            hint="find out who made it, remove it, or name another `landing.dir` in vmcellar.yaml",
        )


def _landing_error(path: Path, error: OSError) -> PermanentError | TransientError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PermanentError(
            f"the landing zone is full: cannot write {path}",
            hint="free space there, or lower `landing.budget`, or move `landing.dir` in vmcellar.yaml",
        )
    return TransientError(f"cannot write {path}: {error}", hint="check the file system of `landing.dir`")
