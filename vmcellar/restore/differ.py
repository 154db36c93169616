"""Make an existing disk equal to a point's by writing only what differs.

What is there already is recognised by its chunk ids, so equal ranges cost a read of the disk and nothing of the
repository. Where a chunk is used in part only, or differs, its bytes are fetched and compared in grains.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from vmcellar.progress import CancelToken
from vmcellar.repository.layout import CHUNK_MAX
from vmcellar.restore.image_server import CONNECTIONS, ImageServer
from vmcellar.restore.plan import Window, chunk_ids

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

GRAIN = 64 << 10
"""What differs is written in multiples of this many bytes, counted from the start of the disk: a qcow2 cluster."""

T = TypeVar("T")

_BATCH = 8 << 20  # bytes of disk that one task looks at


class DifferentialTarget:
    """An open disk as the target of a restore: see `targets.DiskTarget`. Any thread, for ranges without overlaps."""

    def __init__(self, image: ImageServer) -> None:
        self.written = 0
        self.zeroed = 0
        self._image = image
        self._lock = threading.Lock()
        self._starts = self._ends = np.zeros(0, np.int64)

    def look_at(self, start: int, end: int) -> None:
        """Learn which ranges of [start, end) hold data; before anything there is read or written. One thread."""
        found = np.array(list(self._image.data(start, end - start)), np.int64).reshape(-1, 2)
        self._starts, self._ends = found[:, 0], found[:, 1]

    def data(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) may hold data."""
        first = int(np.searchsorted(self._ends, start, "right"))
        last = int(np.searchsorted(self._starts, end, "left"))
        pairs = zip(self._starts[first:last].tolist(), self._ends[first:last].tolist(), strict=True)
        return [(max(start, low), min(end, high)) for low, high in pairs]

    def holds(self, offset: int, length: int) -> bytearray | None:
        """The bytes that are there; None when that is a hole."""
        return self._image.read(offset, length) if self.data(offset, offset + length) else None

    def write(self, offset: int, data: memoryview) -> None:
        """Write those grains of `data` that differ from what is there."""
        for start in range(0, len(data), CHUNK_MAX):
            piece = data[start : start + CHUNK_MAX]
            new = np.frombuffer(piece, np.uint8)
            there = self.holds(offset + start, len(piece))
            old = np.zeros(len(piece), np.uint8) if there is None else np.frombuffer(there, np.uint8)
            for low, high in _runs(_by_grain(new != old, offset + start), offset + start, len(piece)):
                self._put(offset + start + low, piece[low:high], new[low:high])

    def zero(self, start: int, end: int) -> None:
        """Zero those grains of [start, end) that do not read as zero, neighbours at once: RBD drops whole objects."""
        waiting = 0, 0
        for low, high in self._used(start, end):
            if low != waiting[1]:
                self._zero(waiting[0], waiting[1] - waiting[0])
                waiting = low, low
            waiting = waiting[0], high
        self._zero(waiting[0], waiting[1] - waiting[0])

    def _used(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of grains of [start, end) that do not read as zero."""
        for offset in range(start, end, CHUNK_MAX):
            length = min(CHUNK_MAX, end - offset)
            there = self.holds(offset, length)
            if there is not None:
                used = _by_grain(np.frombuffer(there, np.uint8) != 0, offset)
                for low, high in _runs(used, offset, length):
                    yield offset + low, offset + high

    def finish(self) -> None:
        """Make everything durable."""
        self._image.flush()

    def abort(self) -> None:
        """Nothing to take back: the disk is neither the old nor the new one, and its journal says so."""

    def _put(self, offset: int, piece: memoryview, new: NDArray[np.uint8]) -> None:
        """Write a run of grains, those that are zero as holes."""
        used = _by_grain(new != 0, offset)
        place = 0
        for low, high in _runs(used, offset, len(piece)):
            self._zero(offset + place, low - place)
            self._image.write(offset + low, piece[low:high])
            with self._lock:
                self.written += high - low
            place = high
        self._zero(offset + place, len(piece) - place)

    def _zero(self, offset: int, length: int) -> None:
        if length:
            self._image.zero(offset, length)
            with self._lock:
                self.zeroed += length


class Comparer:
    """Threads that look at the disk; close it after use (it is a context manager)."""

    def __init__(self, keyring: Keyring, cancel: CancelToken) -> None:
        self._keyring = keyring
        self._cancel = cancel
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="compare")

    def __enter__(self) -> Comparer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def different(self, window: Window, target: DifferentialTarget) -> Window:
        """The window with only those extents whose bytes are not surely there already."""
        rows = window.rows
        bounds = _batches(rows["offset"].astype(np.int64), rows["length"].astype(np.int64))
        tasks = [self._pool.submit(self._differ, window, target, low, high) for low, high in bounds]
        masks = _results(tasks)
        return Window(window.target, rows[np.concatenate(masks)] if masks else rows, window.locations)

    def zero_gaps(self, window: Window, target: DifferentialTarget, start: int, end: int) -> None:
        """Zero what the window's extents leave out of [start, end)."""
        offsets, lengths = (window.rows[name].astype(np.int64).tolist() for name in ("offset", "length"))
        lows = [start, *(offset + length for offset, length in zip(offsets, lengths, strict=True))]
        tasks = [
            self._pool.submit(self._zero, target, low, high)
            for gap_start, gap_end in zip(lows, [*offsets, end], strict=True)
            for data_start, data_end in target.data(gap_start, gap_end)
            for low, high in _pieces(data_start, data_end)
        ]
        _results(tasks)

    def _zero(self, target: DifferentialTarget, start: int, end: int) -> None:
        self._cancel.check()
        target.zero(start, end)

    def _differ(self, window: Window, target: DifferentialTarget, low: int, high: int) -> NDArray[np.bool_]:
        self._cancel.check()
        rows = window.rows[low:high]
        result = np.ones(len(rows), np.bool_)
        for number, (row, chunk) in enumerate(zip(rows, chunk_ids(rows), strict=True)):
            length = int(row["length"])
            if length == window.locations[chunk].length:
                there = target.holds(int(row["offset"]), length)
                result[number] = there is None or self._keyring.chunk_id(memoryview(there)) != chunk
        return result


def _results(tasks: list[Future[T]]) -> list[T]:
    """What all came to; after the first error no other task begins, and none runs any more when it is raised."""
    try:
        return [task.result() for task in tasks]
    except BaseException:
        for task in tasks:
            task.cancel()
        wait(tasks)
        raise


def _batches(offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Index ranges of extents that hold some _BATCH bytes together."""
    if not len(lengths):
        return
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // _BATCH)) + 1
    edges = [0, *cuts.tolist(), len(offsets)]
    yield from pairwise(edges)


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The range cut at multiples of _BATCH, so that no object of an RBD image is cut."""
    while start < end:
        stop = min((start // _BATCH + 1) * _BATCH, end)
        yield start, stop
        start = stop


def _by_grain(different: NDArray[np.bool_], offset: int) -> NDArray[np.bool_]:
    """For each grain of the disk that the bytes from `offset` on touch, whether any of them is set."""
    first = GRAIN - offset % GRAIN
    edges = np.array([0, *range(first, len(different), GRAIN)])
    return np.logical_or.reduceat(different, edges)


def _runs(grains: NDArray[np.bool_], offset: int, length: int) -> Iterator[tuple[int, int]]:
    """(start, end) within the bytes from `offset` on of each run of set grains."""
    padded = np.concatenate([[False], grains, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).tolist()
    skew = offset % GRAIN
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        yield max(low * GRAIN - skew, 0), min(high * GRAIN - skew, length)
