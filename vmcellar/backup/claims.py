"""Which segment of a run lands a chunk that several segments hold, so that a run stores it once."""

from __future__ import annotations

import threading
from collections.abc import Iterable

Owner = tuple[str, int]
"""A disk's target and the number of a segment."""


class Claims:
    """Chunk ids of one run and the segment that lands each. Any thread.

    A segment that is read again first drops its claims: what it lands then may differ in which of two equal chunks
    it keeps, never in content, since the instant is held.
    """

    def __init__(self) -> None:
        self._owners: dict[bytes, Owner] = {}
        self._active: set[Owner] = set()
        self._lock = threading.Lock()

    def claim(self, chunk: bytes, owner: Owner) -> bool:
        """True when `owner` is to land the chunk, False when it is landed already."""
        with self._lock:
            if chunk in self._owners:
                return False
            self._owners[chunk] = owner
            self._active.add(owner)
            return True

    def adopt(self, chunks: Iterable[bytes], owner: Owner) -> None:
        """Record what a segment landed in an earlier process."""
        with self._lock:
            self._active.add(owner)
            for chunk in chunks:
                self._owners.setdefault(chunk, owner)

    def drop(self, owner: Owner) -> None:
        """Forget what a segment claimed, because it is read again."""
        with self._lock:
            if owner not in self._active:
                return
            self._active.discard(owner)
            self._owners = {chunk: holder for chunk, holder in self._owners.items() if holder != owner}
