"""A directory on this host (SSD, HDD, a mounted network share) as a tier.

An object becomes visible by `link(2)`, which never replaces, after its bytes are on the device; then the folder is made
durable. Reads of packs go around the page cache (O_DIRECT), so that a check reads what the device holds.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from vmcellar.errors import PermanentError, VmcellarError
from vmcellar.folders import sync_folder
from vmcellar.tiers import local_lock, reserve
from vmcellar.tiers.base import (
    REVOCABLE,
    FullError,
    NotFoundError,
    TierReader,
    check_key,
    exists_error,
    is_locked_at_once,
    locked_error,
    too_short,
)
from vmcellar.tiers.device import device_of
from vmcellar.tiers.local_errors import GONE, translate
from vmcellar.tiers.local_reader import LocalReader

_STAGING = "staging"
_TEMPORARY = ("put-", "adopt-")


class LocalTier:
    """A tier in the directory `path`, which must exist."""

    kind = "local"

    def __init__(
        self,
        path: Path,
        *,
        name: str = "hot",
        lock_keep: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the directory; PermanentError when it is missing, no directory or not accessible. With `lock_keep`, what
        is written is locked for so many seconds of `clock`.
        """
        self.path = path
        self.name = name
        self.lock_keep = lock_keep
        self._clock = clock
        self._root = self._identity()
        self._makes_room = 0

    def __repr__(self) -> str:
        return f"tier {self.name} ({self.path})"

    def _identity(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except OSError as error:
            new = "" if self.name == "hot" else f"; if the place is new, `vmcellar tiers add {self.name}` makes it"
            raise PermanentError(
                f"{self!r}: {os.strerror(error.errno or 0)}",
                hint=f"{self.path} is missing: see with `findmnt` whether its file system is mounted{new}",
            ) from error
        if not stat.S_ISDIR(found.st_mode):
            raise PermanentError(f"{self!r} is not a directory", hint="name a directory in vmcellar.yaml")
        return found.st_dev, found.st_ino

    def _still_there(self) -> None:
        """An unmounted directory looks empty: never mistake that for an empty tier (pitfall 20)."""
        if self._identity() != self._root:
            raise PermanentError(
                f"{self!r} is no longer the directory that was opened: was it unmounted?",
                hint="mount its file system again, then repeat the command",
            )

    def _file(self, key: str) -> Path:
        return self.path / check_key(key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn the system's errors into ours, and tell a missing object from a missing directory."""
        try:
            yield
        except OSError as error:
            if error.errno in GONE:
                self._still_there()
            raise translate(error, f"{self!r}: {key}") from error

    def staging_dir(self) -> Path:
        """A folder of the same file system, so that `adopt` copies nothing."""
        folder = self.path / _STAGING
        with self._errors(_STAGING):
            self._still_there()
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def adopt(self, path: Path, key: str) -> None:
        """See Tier.adopt. From another file system the bytes are copied into the staging folder first."""
        target = self._file(key)
        with self._errors(key):
            self._still_there()
            if path.stat().st_dev == self._root[0]:
                self._publish(path, target)
            else:
                self._publish(self._copy_in(path), target)
                path.unlink()

    def put(self, key: str, data: bytes) -> None:
        """See Tier.put."""
        try:
            self._put(key, data)
        except FullError:
            if not self._makes_room or self.exists(key) or not reserve.spend(self.path):
                raise
            self._put(key, data)

    def _put(self, key: str, data: bytes) -> None:
        target = self._file(key)
        temporary = self.staging_dir() / f"put-{uuid4().hex}"
        with self._errors(key):
            if target.exists():
                raise exists_error(self, key)
            try:
                _write_new(temporary, data)
                self._publish(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def making_room(self) -> Iterator[None]:
        """See HasReserve."""
        self._makes_room += 1
        try:
            yield
        finally:
            self._makes_room -= 1
            with suppress(VmcellarError):
                reserve.keep(self.path, self.staging_dir())

    def replace(self, path: Path, key: str) -> None:
        """See Replaces: one rename(2), so that readers see the one or the other."""
        target = self._file(key)
        with self._errors(key):
            self._still_there()
            source = path if path.stat().st_dev == self._root[0] else self._copy_in(path)
            _make_durable(source)
            if target.exists():
                local_lock.unlock(target)
            source.replace(target)
            sync_folder(target.parent)
            self._still_there()
            self._lock_new(target)
            path.unlink(missing_ok=True)

    def _copy_in(self, path: Path) -> Path:
        copy = self.staging_dir() / f"adopt-{uuid4().hex}"
        try:
            shutil.copyfile(path, copy)
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
        return copy

    def _publish(self, source: Path, target: Path) -> None:
        _make_durable(source)
        if self.lock_keep is not None:
            local_lock.check(self.path)  # before anything is there that could not be locked
        self._make_folder(target.parent)
        try:
            os.link(source, target)
        except FileExistsError as error:
            if not source.samefile(target):  # the same file: an earlier adopt died before its last step
                raise exists_error(self, str(target.relative_to(self.path))) from error
        sync_folder(target.parent)
        self._still_there()  # else it went to the folder below a mount that vanished since the first look
        source.unlink()
        self._lock_new(target)

    def _lock_new(self, target: Path) -> None:
        if self.lock_keep is not None and is_locked_at_once(str(target.relative_to(self.path))):
            local_lock.lock(target, self._clock() + self.lock_keep)

    def _make_folder(self, folder: Path) -> None:
        if folder == self.path or folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)

    def get(self, key: str) -> bytes:
        """See Tier.get."""
        with self._errors(key):
            return self._file(key).read_bytes()

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See Tier.read."""
        with self._errors(key), self._file(key).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, offset)
        if len(data) != length:
            raise too_short(self, key, offset, length)
        return data

    def open(self, key: str) -> TierReader:
        """See Tier.open."""
        with self._errors(key):
            return LocalReader(self, key, self._file(key))

    def size(self, key: str) -> int:
        """See Tier.size."""
        with self._errors(key):
            return self._file(key).stat().st_size

    def exists(self, key: str) -> bool:
        """See Tier.exists."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Tier.list."""
        folder, _, start = prefix.rpartition("/")
        if not folder:
            raise ValueError("a prefix names its folder, such as `points/`")
        check_key(folder)
        self._still_there()
        yield from self._walk(folder, start)
        self._still_there()

    def _walk(self, folder: str, start: str) -> Iterator[tuple[str, int]]:
        for entry in self._entries(self.path / folder):
            if not entry.name.startswith(start):
                continue
            key = f"{folder}/{entry.name}"
            try:
                with self._errors(key):
                    found = entry.stat(follow_symlinks=False)
            except NotFoundError:  # somebody deleted it since: a lease that was renewed, a point that was pruned
                continue
            if stat.S_ISDIR(found.st_mode):
                yield from self._walk(key, "")
            elif stat.S_ISREG(found.st_mode):
                yield key, found.st_size
            else:
                raise PermanentError(f"{self!r}: {key} is neither file nor folder", hint="find out what put it there")

    def _entries(self, folder: Path) -> Sequence[os.DirEntry[str]]:
        with self._errors(str(folder)):
            try:
                with os.scandir(folder) as entries:
                    return sorted(entries, key=lambda entry: entry.name)
            except FileNotFoundError:
                self._still_there()
                return []

    def delete(self, key: str) -> None:
        """See Tier.delete."""
        path = self._file(key)
        with self._errors(key):
            until = local_lock.until(path)
            if until > self._clock() and not key.startswith(REVOCABLE):
                raise locked_error(self, key, until)
            if until:
                local_lock.unlock(path)
            path.unlink()
            sync_folder(path.parent)

    def locked_until(self, keys: Iterable[str]) -> Mapping[str, float]:
        """See Locks.locked_until."""
        found = {}
        for key in keys:
            with suppress(NotFoundError), self._errors(key):
                found[key] = local_lock.until(self._file(key))
        return found

    def lock_until(self, keys: Iterable[str], until: float) -> None:
        """See Locks.lock_until."""
        for key in keys:
            with self._errors(key):
                local_lock.lock(self._file(key), until)

    def hidden(self, *, keys: bool = False) -> Sequence[str]:
        """See Locks.hidden: a file that is locked can always be read."""
        del keys
        return ()

    def undelete(self, keys: Iterable[str]) -> None:
        """See Locks.undelete: nothing is ever hidden."""

    def attack(self, key: str) -> str:
        """See Locks.attack: as anybody would who does not take the flag off first."""
        return local_lock.attack(self._file(key))

    def free_bytes(self) -> int | None:
        """What the file system has left for this user."""
        with self._errors("free space"):
            found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def describe(self) -> str:
        """The directory, and the device it really lies on."""
        with self._errors("device"):
            return f"{self.path}, {device_of(self.path)}"

    def clear_unfinished(self, older_than: float) -> Sequence[str]:
        """See Tier.clear_unfinished. What runs stage is theirs to clear; this is what `put` and `adopt` copy there."""
        cleared = []
        for path in sorted(self.staging_dir().iterdir()):
            with self._errors(path.name), suppress(FileNotFoundError):
                if path.name.startswith(_TEMPORARY) and time.time() - path.stat().st_mtime > older_than:
                    path.unlink()
                    cleared.append(path.name)
        return cleared


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def _make_durable(path: Path) -> None:
    """fsync and take the write permission. A failed fsync is final: a second one may pass with the bytes lost."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(file, 0o400)
        os.fsync(file)
    finally:
        os.close(file)


def make_directory(folder: Path, mode: int = 0o700) -> None:
    """Make a directory for a tier, and its parents, so that a power cut does not take it away again. Raises OSError."""
    if not folder.parent.is_dir():
        make_directory(folder.parent, mode=0o777)
    folder.mkdir(mode=mode, exist_ok=True)
    with suppress(PermissionError):  # a parent that this user may enter and not read
        sync_folder(folder.parent)
