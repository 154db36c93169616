"""Move the bytes: packs are read in order with coalesced reads, decoded and checked on all cores, written in any order.

The unit of work is a group: chunks of one pack that one read fetches. A worker reads it, then decrypts, decompresses,
checks and writes chunk by chunk, in the order of the disk; all of that frees the GIL. Memory is one read buffer and
four chunks per worker, used again and again: a long chunk is written from where it was decoded, short ones that follow
each other together (`gather`).
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.errors import VmcellarError
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.repository.open_packs import OpenPacks
from vmcellar.repository.packs import Group, Location, groups
from vmcellar.repository.restore_pace import pay
from vmcellar.repository.salvage import lend_each
from vmcellar.restore.gather import Gathered, gathered
from vmcellar.restore.plan import Resolver, Window, chunk_ids
from vmcellar.restore.report import LostRange
from vmcellar.restore.targets import DiskTarget
from vmcellar.tiers.base import ArchivedError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.base import Tier

WORKERS_MAX = 16
"""At some 10 MiB each, they stay well inside the memory that a restore may take (256 MiB)."""


def readers_for(tier: Tier) -> int:
    """Threads of a restore from `tier`: three per core for a directory, as most wait for the device; from a server as
    many as memory allows, as each waits for its answer.
    """
    return WORKERS_MAX if tier.kind != "local" else min(WORKERS_MAX, max(6, 3 * (os.cpu_count() or 1)))


Use = tuple[int, int, int]
"""(offset on the disk, length, offset in the chunk)"""


@dataclass(frozen=True, slots=True)
class Moved:
    """What one group or window came to: bytes read from the tier and written to the image, and what was lost."""

    read: int = 0
    written: int = 0
    lost: tuple[LostRange, ...] = ()

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.read + other.read, self.written + other.written, self.lost + other.lost)


class Fetcher:
    """The worker threads of one restore; close it after use (it is a context manager)."""

    def __init__(self, repository: Repository, progress: ProgressSink, cancel: CancelToken) -> None:
        self._repository = repository
        self._progress = progress
        self._cancel = cancel
        self._workers = readers_for(repository.tier)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="restore")
        self._packs = OpenPacks(repository.tier, repository.keyring)

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._packs.close()

    def restore(self, window: Window, target: DiskTarget, resolver: Resolver) -> Moved:
        """Write all of a window's bytes into `target`. Returns when all is written.

        Raises the first error of any worker, after all have stopped. What `resolver` takes as lost is in the result.
        """
        uses = _uses(window)
        objects = sorted((window.locations[chunk] for chunk in uses), key=lambda found: (found.pack.id, found.offset))
        job = _WindowJob(
            self._repository, self._packs, window.target, uses, target, resolver, self._progress, self._cancel
        )
        pending: deque[Future[Moved]] = deque()
        moved = Moved()
        try:
            for group in groups(objects):
                pending.append(self._pool.submit(job.run, group))
                if len(pending) > 2 * self._workers:
                    moved += pending.popleft().result()
            while pending:
                moved += pending.popleft().result()
        except BaseException:
            for future in pending:
                future.cancel()
            wait(pending)
            raise
        return moved


@dataclass(frozen=True, slots=True)
class _WindowJob:
    """What the workers share while they restore one window; nothing of it changes."""

    repository: Repository
    packs: OpenPacks
    disk: str
    uses: dict[bytes, list[Use]]
    target: DiskTarget
    resolver: Resolver
    progress: ProgressSink
    cancel: CancelToken

    def run(self, group: Group) -> Moved:
        """Restore one group; CancelledError when stopped."""
        written = 0
        lost: list[LostRange] = []
        objects = tuple(sorted(group.objects, key=lambda found: self.uses[found.chunk][0]))
        ordered = Group(group.start, group.end, objects)
        with gathered(self.target) as image:
            for found, content in lend_each(self.repository.tier, self.repository.keyring, ordered, self.packs):
                self.cancel.check()
                if isinstance(content, VmcellarError):
                    lost += self._lose(found, content)
                else:
                    written += self._write(image, found, memoryview(content))
        return Moved(pay(self.repository, group, self.cancel), written, tuple(lost))

    def _write(self, image: Gathered, found: Location, plain: memoryview) -> int:
        """Write a chunk wherever the disk has it; CPU and device are kept apart by the other workers."""
        written = 0
        for offset, length, start in self.uses[found.chunk]:
            image.write(offset, plain[start : start + length])
            written += length
        self.progress("restore", written)
        return written

    def _lose(self, found: Location, error: VmcellarError) -> list[LostRange]:
        uses = self.uses[found.chunk]
        if not self.resolver.best_effort or isinstance(error, ArchivedError):  # a thaw that ended is no damage
            raise self.resolver.named(error, self.disk, uses[0][0]) from error
        return [LostRange(self.disk, offset, length, error.message) for offset, length, _ in uses]


def _uses(window: Window) -> dict[bytes, list[Use]]:
    """Where on the disk each chunk goes."""
    uses: dict[bytes, list[Use]] = defaultdict(list)
    rows = window.rows
    columns = (rows[name].tolist() for name in ("offset", "length", "chunk_offset"))
    for chunk, *use in zip(chunk_ids(rows), *columns, strict=True):
        uses[chunk].append((use[0], use[1], use[2]))
    return uses
