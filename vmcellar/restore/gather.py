"""Small chunks that follow each other on a disk are written as one: with `chunks: content` a MiB is some eleven chunks,
and a direct write costs the kernel ten times what copying its bytes costs us.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmcellar.memory import BufferPool

if TYPE_CHECKING:
    from vmcellar.restore.targets import DiskTarget

TOGETHER = 2 << 20
"""Bytes that are written at once, at most."""
ALONE = 512 << 10
"""What is as long as this is written from where it lies: a copy would cost more than the write that it saves."""

_buffers = BufferPool(TOGETHER, huge=True)


class Gathered:
    """What one thread writes to a disk; nothing of it may be relied upon before `flush`."""

    def __init__(self, target: DiskTarget, buffer: memoryview) -> None:
        self._target = target
        self._buffer = buffer
        self._offset = self._length = 0

    def write(self, offset: int, data: memoryview) -> None:
        """Take `data`, which goes to byte `offset`; its memory is the caller's again. Raises what the target raises."""
        if self._length and (offset != self._offset + self._length or self._length + len(data) > len(self._buffer)):
            self.flush()
        if len(data) >= ALONE and not self._length:
            self._target.write(offset, data)
            return
        if not self._length:
            self._offset = offset
        self._buffer[self._length : self._length + len(data)] = data
        self._length += len(data)

    def flush(self) -> None:
        """Write what was taken."""
        length, self._length = self._length, 0
        if length:
            self._target.write(self._offset, self._buffer[:length])


@contextmanager
def gathered(target: DiskTarget) -> Iterator[Gathered]:
    """All is written when the block ends well. After an error nobody knows what was."""
    with _buffers.buffer() as buffer:
        taken = Gathered(target, buffer)
        yield taken
        taken.flush()
