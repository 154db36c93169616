"""Memory that is used again: the first touch of a page costs about ten times what every later one does.

Measured on the hot path: 0.4-0.5 s of CPU per GB for fresh pages, 0.05 for pages that the process has touched before
(docs/performance.md). glibc gives allocations from 128 KiB up back to the kernel as soon as they are freed, so each
1 MiB chunk would be paid for again.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from vmcellar.progress import CancelToken

PAGE = 4096
"""Alignment that O_DIRECT needs at most, in bytes."""

HUGE_PAGE = 2 << 20
"""Where a buffer consists of these, the kernel hands a device few long pieces: a MiB of small pages is 256 of them, two
more than virtio-blk takes at once (its usual limit is 254), so each such write became two requests.
"""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc, mallopt(3)
_MMAP_THRESHOLD = 32 << 20  # glibc refuses more than half of a 64 MiB heap (mallopt(3), HEAP_MAX)
_TRIM_THRESHOLD = 512 << 20
_TOP_PAD = 16 << 20
_WAIT_SECONDS = 0.2

_NEW_OBJECTS = 10_000
"""What lies in cycles stays until so many containers more were made than freed: some MiB at most."""


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory of this process for the next allocation; True when it took the settings.

    Idempotent. The heap stays as large as its peak was, which the engine bounds by its pools. Does nothing and
    returns False where the C library has no `mallopt` (musl).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, _MMAP_THRESHOLD), (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD), (_M_TOP_PAD, _TOP_PAD))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)


def collect_rarely() -> None:
    """Have Python look for cycles less often than after each 700 new objects: nearly all that imports make stays, and
    walking it again and again is a twelfth of what a command takes to start (docs/performance.md).

    It is of the whole process, so for the program itself to call, before it imports the rest.
    """
    gc.set_threshold(_NEW_OBJECTS)


def helper_environment() -> dict[str, str]:
    """The same settings as variables for helper processes (qemu-nbd), to be added to their environment."""
    return {
        "MALLOC_MMAP_THRESHOLD_": str(_MMAP_THRESHOLD),
        "MALLOC_TRIM_THRESHOLD_": str(_TRIM_THRESHOLD),
        "MALLOC_TOP_PAD_": str(_TOP_PAD),
    }


def available_memory() -> int:
    """Bytes that this host can give without swapping, as the kernel estimates; proc(5), MemAvailable."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return 0


def is_aligned(data: memoryview) -> bool:
    """Whether `data`, of any length but none, begins on a page, as the buffers of a pool do; bytes objects never do."""
    return not data.readonly and ctypes.addressof(ctypes.c_char.from_buffer(data)) % PAGE == 0


class BufferPool:
    """Page-aligned buffers of one size, handed out and taken back; any thread.

    With `count`, at most so many exist and `acquire` waits for one; without, memory is bounded by what the users hold
    at once. Buffers are made when first needed and kept until the pool goes.
    """

    def __init__(self, size: int, count: int | None = None, *, huge: bool = False) -> None:
        """Buffers of `size` bytes, a multiple of the page size; of HUGE_PAGE where `huge` ones are asked for."""
        if size <= 0 or size % PAGE:
            raise ValueError(f"buffers need a multiple of {PAGE} bytes, not {size}")
        self.size = size
        self.count = count
        self._huge = huge
        self._made = 0
        self._free: list[memoryview] = []
        self._changed = threading.Condition()

    def acquire(self, cancel: CancelToken | None = None) -> memoryview:
        """A buffer with arbitrary content; CancelledError when `cancel` is set while waiting for one."""
        with self._changed:
            while not self._free and self._made == self.count:
                if cancel is not None:
                    cancel.check()
                self._changed.wait(_WAIT_SECONDS)
            if self._free:
                return self._free.pop()
            self._made += 1
        # private: without it, processes that forked (multiprocessing does) would write into each other's buffers
        made = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if self._huge:
            with suppress(OSError):  # a kernel without them
                made.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(made)

    def release(self, buffer: memoryview) -> None:
        """Take a buffer back, or the buffer that a slice is of; nothing may read or write it from now on."""
        whole = memoryview(buffer.obj)
        if len(whole) != self.size:
            raise ValueError(f"a buffer of {len(whole)} bytes is not from this pool of {self.size}")
        with self._changed:
            self._free.append(whole)
            self._changed.notify()

    @contextmanager
    def buffer(self, cancel: CancelToken | None = None) -> Iterator[memoryview]:
        """A buffer for the length of a `with` block."""
        taken = self.acquire(cancel)
        try:
            yield taken
        finally:
            self.release(taken)
