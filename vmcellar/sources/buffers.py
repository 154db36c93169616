"""Re-used memory for reads: the first touch of a page costs about ten times more than every later one."""

from __future__ import annotations

import mmap
import threading


class BufferPool:
    """Page-aligned buffers of one size, handed out and taken back.

    Never blocks: it makes a buffer when none is free, so memory is bounded by how many its users hold at once (a
    reader holds at most its depth). Any number of threads may use it.
    """

    def __init__(self, size: int = 1 << 20) -> None:
        """Buffers of `size` bytes."""
        self.size = size
        self._free: list[memoryview] = []
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """A buffer with arbitrary content; give it back when nothing writes to it any more."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return memoryview(mmap.mmap(-1, self.size))

    def give(self, buffer: memoryview) -> None:
        """Take back a buffer that came from `take`."""
        with self._lock:
            self._free.append(buffer)
