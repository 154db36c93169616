"""The way past the landing zone: a chunk that a compressor can take now is sealed straight from the read buffer.

Landing a chunk costs a write to memory that the process has not touched before and a read back: measured, a third of
all CPU time of a full backup (docs/performance.md). Where compression keeps up with the reading, nothing needs to
land; where it does not (few cores, a high level, a slow disk below the packs), what is too much lands, and the VM is
let go as soon as before.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmcellar.progress import ProgressSink
from vmcellar.repository.layout import CHUNK_MAX
from vmcellar.repository.packs import PackWriter, SealedPack

if TYPE_CHECKING:
    from vmcellar.engine import Engine

PATIENCE_SECONDS = 0.002
"""How long a reader waits for a compressor before its chunk lands: about what landing 1 MiB takes."""


Piece = tuple[bytes, memoryview]
"""A chunk's id and its bytes."""


class _Flight:
    """The chunks of one buffer on their way: whether a thread has begun with it."""

    begun = False


class DirectPath:
    """Seals chunks of one segment from their read buffers. Any thread calls `take`; one thread then ends it.

    A crash leaves pack files in the run's staging folder that nothing refers to.
    """

    def __init__(self, engine: Engine, writer: PackWriter, progress: ProgressSink) -> None:
        self._engine = engine
        self._writer = writer
        self._progress = progress
        self._changed = threading.Condition()
        self._flying: set[_Flight] = set()
        self._error: BaseException | None = None

    def take(self, chunks: Sequence[Piece], data: memoryview, *, patient: bool = False) -> bool:
        """Whether the chunks, pieces of `data`, are on their way to a pack; its buffer, of `engine.read_buffers`, is
        then given back for you.

        Who is `patient` waits for a compressor, where there are any at all, rather than land. Raises what sealing an
        earlier chunk raised, such as PermanentError for a full tier.
        """
        if self._error is not None:
            raise self._error
        if self._engine.config.landing.direct < CHUNK_MAX:
            return False
        if not self._engine.direct_slots.acquire(timeout=None if patient else PATIENCE_SECONDS):
            return False
        flight = _Flight()
        with self._changed:
            self._flying.add(flight)
        try:
            self._engine.cpu.submit(self._append, flight, chunks, data)
        except RuntimeError:  # the pool is closed, or took the chunk and could not start one more thread
            with self._changed:
                if not flight.begun:
                    self._land(flight)
                    raise
        return True

    def finish(self) -> list[SealedPack]:
        """Wait for all that was taken; the sealed packs. Raises the first error; then only `abort` is allowed."""
        self._wait()
        if self._error is not None:
            raise self._error
        return self._writer.finish()

    def abort(self) -> None:
        """Wait for all that was taken, and remove its packs."""
        self._wait()
        self._writer.abort()

    def _append(self, flight: _Flight, chunks: Sequence[Piece], data: memoryview) -> None:
        with self._changed:
            if flight not in self._flying:
                return
            flight.begun = True
        try:
            for chunk, piece in chunks:
                if self._error is not None:
                    break
                self._writer.append(chunk, piece)
                self._progress("compress", len(piece))
        except BaseException as error:  # told by the next `take`, or by `finish`
            self._error = self._error or error
        finally:
            self._engine.read_buffers.release(data)
            with self._changed:
                self._land(flight)

    def _land(self, flight: _Flight) -> None:
        """Note its end; the caller holds `_changed`."""
        self._flying.remove(flight)
        self._engine.direct_slots.release()
        self._changed.notify_all()

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._flying)
