"""Chunks for a server of disks: read once, checked, kept within a budget, fetched before they are asked for.

All access to the repository happens on this module's own threads. nbdkit's threads have a new Python state in every
call, so what the index keeps per thread (a database connection) would be opened again for each request.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from vmcellar.errors import IntegrityError
from vmcellar.progress import CancelToken
from vmcellar.repository.packs import Location, groups
from vmcellar.repository.restore_pace import pay
from vmcellar.repository.salvage import read_each
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository

CACHE_BYTES = 128 << 20
"""Plain chunks that are kept. What requests under way hold comes on top: at most 8 MiB for each request."""

_WORKERS = 8
_AHEAD_WORKERS = 2
_AHEAD_WAITING = 8  # fetches ahead that may wait; more are dropped, since they only help

T = TypeVar("T")


class ChunkCache:
    """The chunks of one repository. Any thread; close it after use.

    A chunk that several ask for at once is read once. One that fails is not kept: the next who asks reads it again.
    """

    def __init__(self, repository: Repository, limit: int = CACHE_BYTES) -> None:
        self._repository = repository
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._loading: dict[bytes, Future[bytes]] = {}
        self._ahead_waiting = 0
        self._closing = CancelToken()
        self.held = 0
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="serve")
        self._ahead = ThreadPoolExecutor(_AHEAD_WORKERS, thread_name_prefix="serve-ahead")

    def close(self) -> None:
        """Stop reading; waits for reads under way."""
        self._closing.cancel()
        self._ahead.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def call(self, work: Callable[[], T]) -> T:
        """The result of `work`, done on a thread of this cache; `work` must not call back into the cache."""
        return self._pool.submit(work).result()

    def read(self, wanted: Sequence[bytes]) -> dict[bytes, bytes]:
        """The checked bytes of these chunks. IntegrityError names pack and chunk; else raises what the tier raises."""
        found, waiting, mine = self._claim(wanted)
        if mine:
            self._pool.submit(self._load, mine)
        for chunk, future in waiting.items():
            found[chunk] = future.result()
        return found

    def fetch_ahead(self, wanted: Callable[[], Sequence[bytes]]) -> Future[None] | None:
        """Have the chunks that `wanted` names read soon; None when too much waits already. `read` meets any error."""
        with self._lock:
            if self._ahead_waiting >= _AHEAD_WAITING:
                return None
            self._ahead_waiting += 1
        return self._ahead.submit(self._fetch_ahead, wanted)

    def _fetch_ahead(self, wanted: Callable[[], Sequence[bytes]]) -> None:
        try:
            mine = self._claim(wanted())[2]
            if mine:
                self._load(mine)
        finally:
            with self._lock:
                self._ahead_waiting -= 1

    def _claim(self, wanted: Sequence[bytes]) -> tuple[dict[bytes, bytes], dict[bytes, Future[bytes]], list[bytes]]:
        """What is kept, what is being read, and which of the latter the caller has to load."""
        found, waiting, mine = {}, {}, []
        with self._lock:
            for chunk in dict.fromkeys(wanted):
                if chunk in self._kept:
                    self._kept.move_to_end(chunk)
                    found[chunk] = self._kept[chunk]
                    continue
                if chunk not in self._loading:
                    self._loading[chunk] = Future()
                    mine.append(chunk)
                waiting[chunk] = self._loading[chunk]
        return found, waiting, mine

    def _load(self, mine: Sequence[bytes]) -> None:
        """Read claimed chunks. Each is settled whatever happens, since others wait for it."""
        left = set(mine)
        problem: BaseException = IntegrityError(
            "no pack that the index names holds it", hint="type `vmcellar rebuild-index`, then `vmcellar verify --all`"
        )
        try:
            self._load_located(left, last=False)
            if left:  # a gc repacked them: the index tells where they are now
                self._repository.index.refresh()
                self._load_located(left, last=True)
        except BaseException as error:  # handed to those who wait
            problem = error
        for chunk in left:
            self._settle(chunk, problem)

    def _load_located(self, left: set[bytes], *, last: bool) -> None:
        """Read, settle and take from `left` what the index can find; what has no pack stays, unless this is `last`."""
        located = self._locate(list(left))
        for group in groups(sorted(located.values(), key=lambda found: (found.pack.id, found.offset))):
            read = read_each(self._repository.tier, self._repository.keyring, group)
            for number, (found, content) in enumerate(read):
                if not number:
                    pay(self._repository, group, self._closing)  # before anybody has its bytes, and asks for more
                if last or not isinstance(content, NotFoundError):
                    left.discard(found.chunk)
                    self._settle(found.chunk, content)

    def _locate(self, wanted: Sequence[bytes]) -> dict[bytes, Location]:
        try:
            return self._repository.locate(wanted)
        except IntegrityError:  # one of them is nowhere: the others are read all the same
            return self._repository.index.locate(wanted)

    def _settle(self, chunk: bytes, content: bytes | BaseException) -> None:
        with self._lock:
            future = self._loading.pop(chunk)
            if not isinstance(content, BaseException):
                self._keep(chunk, content)
        if isinstance(content, BaseException):
            future.set_exception(content)
        else:
            future.set_result(content)

    def _keep(self, chunk: bytes, content: bytes) -> None:
        self._kept[chunk] = content
        self.held += len(content)
        while self.held > self._limit:
            self.held -= len(self._kept.popitem(last=False)[1])
