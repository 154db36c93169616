"""Carry an object from tier to tier: copied as a stream, then read back from where it went and compared.

Nothing is decrypted, so a host that may not open what it moves (recipient mode) can move it.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from blake3 import blake3

from vmcellar.errors import IntegrityError
from vmcellar.memory import BufferPool
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.repository.pack_reader import READ_MAX
from vmcellar.tiers.base import ArchivedError, ExistsError, KeepsDigests, LockedError
from vmcellar.upkeep.limits import Limits

if TYPE_CHECKING:
    from vmcellar.tiers.base import Tier

_buffers = BufferPool(READ_MAX)
_NAP = 0.5


class Pace:
    """Lets through at most `rate` bytes per second, of all threads together; None: as fast as it goes."""

    def __init__(
        self,
        rate: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._free = clock()
        self._lock = threading.Lock()

    def take(self, count: int, cancel: CancelToken) -> None:
        """Wait until `count` more bytes may go; CancelledError when stopped meanwhile."""
        if self._rate is None:
            return
        with self._lock:
            start = max(self._free, self._clock())
            self._free = start + count / self._rate
        while (left := start - self._clock()) > 0:
            cancel.check()
            self._sleep(min(left, _NAP))


class Carrier:
    """Carries objects, for one run of one work. Any thread.

    `folder` is a name for what is half-way, in the staging folder of each target; no two runs may share it.
    """

    def __init__(
        self, folder: str, pace: Pace, progress: ProgressSink, cancel: CancelToken, limits: Limits | None = None
    ) -> None:
        self._folder = folder
        self._pace = pace
        self._progress = progress
        self._cancel = cancel
        self._limits = limits or Limits()

    def clear(self, target: Tier) -> None:
        """Remove what a run that died left half-way on this host."""
        shutil.rmtree(target.staging_dir() / self._folder, ignore_errors=True)

    def copy(self, key: str, source: Tier, target: Tier) -> str:
        """Make `target` have the object as `source` has it, proven by reading it back; the digest.

        IntegrityError when what is there afterwards is something else. A crash leaves the whole object or none.
        """
        folder = target.staging_dir() / self._folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / uuid4().hex
        try:
            digest, size = self._fetch(key, source, path)
            self._limits.take(target.name, size, self._cancel)
            new = _adopted(path, key, target)
        finally:
            path.unlink(missing_ok=True)
        if not self.holds(key, target, digest, size):
            if new:
                with suppress(LockedError):
                    target.delete(key)
            raise IntegrityError(
                f"{target!r}: {key} does not read back as {source!r} has it",
                hint="look at that tier's device or server; `vmcellar verify --all --deep` reads all that is stored",
            )
        return digest

    def _fetch(self, key: str, source: Tier, path: Path) -> tuple[str, int]:
        digest = blake3()
        with source.open(key) as reader, path.open("xb", buffering=0) as out, _buffers.buffer() as buffer:
            for start in range(0, reader.size, READ_MAX):
                view = buffer[: min(READ_MAX, reader.size - start)]
                self._cancel.check()
                self._pace.take(len(view), self._cancel)
                self._limits.take(source.name, len(view), self._cancel)
                reader.read_into(start, view)
                digest.update(view)
                done = 0
                while done < len(view):
                    done += out.write(view[done:])
                self._progress("move", len(view))
            return digest.hexdigest(), reader.size

    def digest(self, key: str, tier: Tier) -> str:
        """The digest of what is there, read now; ArchivedError when it must be thawed first."""
        digest = blake3()
        with tier.open(key) as reader, _buffers.buffer() as buffer:
            for start in range(0, reader.size, READ_MAX):
                self._cancel.check()
                view = buffer[: min(READ_MAX, reader.size - start)]
                self._limits.take(tier.name, len(view), self._cancel)
                reader.read_into(start, view)
                digest.update(view)
        return digest.hexdigest()

    def holds(self, key: str, tier: Tier, digest: str, size: int) -> bool:
        """Whether the object is there with these bytes. In an archive class, which cannot be read: with this length,
        and with this digest beside it, from a writer whose every byte the server had checked.
        """
        if tier.size(key) != size:
            return False
        try:
            return self.digest(key, tier) == digest
        except ArchivedError:
            return isinstance(tier, KeepsDigests) and tier.stored_digest(key) == digest


def _adopted(path: Path, key: str, target: Tier) -> bool:
    """False when the object was there already, of a run that died after this step: its bytes decide then."""
    try:
        target.adopt(path, key)
    except ExistsError:
        return False
    return True
