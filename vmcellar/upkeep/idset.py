"""A set of object ids as sorted arrays: 40 bytes for each, twice that while two arrays become one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmcellar.repository.layout import ID_BYTES

Ids = NDArray[np.uint8]
"""Rows of 32 bytes."""

_Run = tuple[NDArray[np.uint64], Ids]


class IdSet:
    """Grows only. One thread.

    Arrays are sorted by the first 8 bytes and compared in full. Each is at least twice as long as the next, so few are
    asked, and an id moves few times.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(prefixes) for prefixes, _ in self._runs)

    def add(self, ids: Ids) -> Ids:
        """Those of `ids` that were not there before, sorted; they are there from now on.

        An id comes out once more if another one has the same first 8 bytes: never too few.
        """
        run = _sorted(ids)
        run = _without(run, _repeats(run))
        for known in self._runs:
            run = _without(run, _found_in(run, known))
        if len(run[0]):
            self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            last = self._runs.pop()
            self._runs[-1] = _sorted(np.concatenate([self._runs[-1][1], last[1]]))
        return run[1]


def _sorted(ids: Ids) -> _Run:
    prefixes = np.ascontiguousarray(ids[:, :8]).view(np.uint64).reshape(len(ids))
    order = np.argsort(prefixes, kind="stable")
    return prefixes[order], ids[order]


def _without(run: _Run, gone: NDArray[np.bool_]) -> _Run:
    return run[0][~gone], run[1][~gone]


def _repeats(run: _Run) -> NDArray[np.bool_]:
    """Which rows are equal to the one before."""
    prefixes, ids = run
    found = np.zeros(len(prefixes), np.bool_)
    found[1:] = (ids[1:] == ids[:-1]).all(axis=1)
    return found


def _found_in(run: _Run, known: _Run) -> NDArray[np.bool_]:
    place = np.minimum(np.searchsorted(known[0], run[0]), len(known[0]) - 1)
    found: NDArray[np.bool_] = known[0][place] == run[0]
    found[found] = (known[1][place[found]] == run[1][found]).all(axis=1)
    return found


def id_rows(ids: list[bytes]) -> Ids:
    """Ids as rows."""
    return np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), ID_BYTES)


def id_bytes(rows: Ids) -> list[bytes]:
    """Rows as ids."""
    data = rows.tobytes()
    return [data[start : start + ID_BYTES] for start in range(0, len(data), ID_BYTES)]
