"""What a server of disks could not read, and how long it tried, as the process that started it learns it: its clients
see an I/O error alone, or nothing at all while a tier does not answer.

The notes lie in a file of memory that both processes hold: nothing is left behind, whichever of them is killed, and
they outlive the server.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vmcellar.errors import IntegrityError, PermanentError, TransientError, VmcellarError


def kind_of(error: BaseException) -> type[VmcellarError]:
    """What a read that failed says: IntegrityError of the point; TransientError or PermanentError of its place."""
    kinds = (IntegrityError, TransientError)
    return next((kind for kind in kinds if isinstance(error, kind)), PermanentError)


_NAMES = {kind.__name__: kind for kind in (IntegrityError, TransientError, PermanentError)}


_WAITS = struct.Struct("=dd")
"""The file begins with when the oldest read under way began (0: none), and the seconds of the longest that ended."""


class ReadNotes:
    """The first error of each kind, and the longest read. Any thread may note; the process that made it reads."""

    def __init__(self, handle: int) -> None:
        """`handle` is the file; it stays the caller's."""
        self.handle = handle
        self._noted: set[type[VmcellarError]] = set()
        self._begun: dict[object, float] = {}
        self._longest = 0.0
        self._lock = threading.Lock()

    @classmethod
    def new(cls) -> ReadNotes:
        """Without any; to be closed by `close`."""
        handle = os.memfd_create("vmcellar-read-notes")
        os.write(handle, bytes(_WAITS.size))
        return cls(handle)

    def close(self) -> None:
        """Let the file go."""
        os.close(self.handle)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The block is one read of a client."""
        token = object()
        with self._lock:
            self._begun[token] = time.monotonic()
            self._tell_waits()
        try:
            yield
        finally:
            with self._lock:
                self._longest = max(self._longest, time.monotonic() - self._begun.pop(token))
                self._tell_waits()

    def _tell_waits(self) -> None:
        os.pwrite(self.handle, _WAITS.pack(min(self._begun.values(), default=0.0), self._longest), 0)

    def longest(self) -> float:
        """Seconds that the longest read took, or is under way by now; processes of one host share the clock."""
        oldest, longest = _WAITS.unpack(os.pread(self.handle, _WAITS.size, 0))
        return float(max(longest, time.monotonic() - oldest if oldest else 0.0))

    def note(self, error: BaseException) -> None:
        """Note it unless one of its kind is there."""
        kind = kind_of(error)
        with self._lock:
            if kind not in self._noted:
                self._noted.add(kind)
                message = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
                os.write(self.handle, json.dumps([kind.__name__, message]).encode() + b"\n")

    def errors(self) -> Mapping[type[VmcellarError], str]:
        """The message of the first error of each kind; reads beside a writer."""
        text = os.pread(self.handle, os.fstat(self.handle).st_size, _WAITS.size)
        lines = (line for line in text.splitlines(keepends=True) if line.endswith(b"\n"))  # not one half written
        noted = [json.loads(line) for line in lines]
        return {_NAMES[name]: message for name, message in reversed(noted)}
