"""Which segment of a run lands a chunk that several segments hold, so that a run stores it once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Owner = tuple[str, int]
"""A disk's target and the number of a segment."""

RECENT = 1 << 15
"""Claims that are held in a dict, at 120 bytes each; older ones take 36."""

RUN_MOST = 1 << 19
"""Claims in one array: while two become one, both are there once more."""

_CLAIM = np.dtype([("rest", "<u8", (3,)), ("owner", "<u4")])


class _Run(NamedTuple):
    """Claims in the order of the first word of their ids; the other three are compared in full."""

    first: NDArray[np.uint64]
    claims: NDArray[np.void]

    @classmethod
    def of(cls, claims: dict[bytes, int]) -> Self:
        words = np.frombuffer(b"".join(claims), "<u8").reshape(-1, 4)
        found = np.empty(len(claims), _CLAIM)
        found["rest"] = words[:, 1:]
        found["owner"] = np.fromiter(claims.values(), np.uint32, len(claims))
        return cls(words[:, 0], found).sorted()

    def sorted(self) -> Self:
        order = np.argsort(self.first, kind="stable")
        return self._replace(first=self.first[order], claims=self.claims[order])

    def takes(self, other: Self) -> bool:
        """So that each is twice as long as the next, or as long as one may be: a claim moves few times."""
        ours, more = len(self.first), len(other.first)
        return ours < 2 * more and ours + more <= RUN_MOST

    def merged(self, other: Self) -> Self:
        both = np.concatenate([self.first, other.first]), np.concatenate([self.claims, other.claims])
        return self._replace(first=both[0], claims=both[1]).sorted()

    def without(self, owner: int) -> Self:
        stay = self.claims["owner"] != owner
        return self._replace(first=self.first[stay], claims=self.claims[stay])

    def has(self, words: NDArray[np.uint64]) -> bool:
        first = words[0]
        place = int(self.first.searchsorted(first))
        while place < len(self.first) and self.first[place] == first:
            if (self.claims["rest"][place] == words[1:]).all():
                return True
            place += 1
        return False


class Claims:
    """Chunk ids of one run and the segment that lands each. Any thread. 36 bytes for each.

    A segment that is read again first drops its claims: what it lands then may differ in which of two equal chunks
    it keeps, never in content, since the instant is held.
    """

    def __init__(self) -> None:
        self._recent: dict[bytes, int] = {}
        self._runs: list[_Run] = []
        self._numbers: dict[Owner, int] = {}
        self._next = itertools.count()  # of owners: none is given twice
        self._lock = threading.Lock()

    def claim(self, chunk: bytes, owner: Owner) -> bool:
        """True when `owner` is to land the chunk, False when it is landed already."""
        with self._lock:
            return self._claim(chunk, self._number(owner))

    def adopt(self, chunks: Iterable[bytes], owner: Owner) -> None:
        """Record what a segment landed in an earlier process."""
        with self._lock:
            number = self._number(owner)
            for chunk in chunks:
                self._claim(chunk, number)

    def drop(self, owner: Owner) -> None:
        """Forget what a segment claimed, because it is read again."""
        with self._lock:
            number = self._numbers.pop(owner, None)
            if number is not None:
                self._recent = {chunk: holder for chunk, holder in self._recent.items() if holder != number}
                self._runs = [run.without(number) for run in self._runs]

    def _number(self, owner: Owner) -> int:
        if owner not in self._numbers:
            self._numbers[owner] = next(self._next)
        return self._numbers[owner]

    def _claim(self, chunk: bytes, owner: int) -> bool:
        if chunk in self._recent:
            return False
        words = np.frombuffer(chunk, "<u8")
        if any(run.has(words) for run in self._runs):
            return False
        self._recent[chunk] = owner
        if len(self._recent) >= RECENT:
            self._settle()
        return True

    def _settle(self) -> None:
        self._runs.append(_Run.of(self._recent))
        self._recent = {}
        while len(self._runs) > 1 and self._runs[-2].takes(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = self._runs[-1].merged(last)
