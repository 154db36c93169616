"""What a server of disks could not read, as the process that started it learns it: its clients see an I/O error alone.

The notes lie in a file of memory that both processes hold: nothing is left behind, whichever of them is killed, and
they outlive the server.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping

from vmcellar.errors import IntegrityError, PermanentError, TransientError, VmcellarError


def kind_of(error: BaseException) -> type[VmcellarError]:
    """What a read that failed says: IntegrityError of the point; TransientError or PermanentError of its place."""
    kinds = (IntegrityError, TransientError)
    return next((kind for kind in kinds if isinstance(error, kind)), PermanentError)


_NAMES = {kind.__name__: kind for kind in (IntegrityError, TransientError, PermanentError)}


class ReadErrors:
    """The first error of each kind. Any thread may note; the process that made it reads."""

    def __init__(self, handle: int) -> None:
        """`handle` is the file; it stays the caller's."""
        self.handle = handle
        self._noted: set[type[VmcellarError]] = set()
        self._lock = threading.Lock()

    @classmethod
    def new(cls) -> ReadErrors:
        """Without any; to be closed by `close`."""
        return cls(os.memfd_create("vmcellar-read-errors"))

    def close(self) -> None:
        """Let the file go."""
        os.close(self.handle)

    def note(self, error: BaseException) -> None:
        """Note it unless one of its kind is there."""
        kind = kind_of(error)
        with self._lock:
            if kind not in self._noted:
                self._noted.add(kind)
                message = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
                os.write(self.handle, json.dumps([kind.__name__, message]).encode() + b"\n")

    def found(self) -> Mapping[type[VmcellarError], str]:
        """The message of the first error of each kind; reads beside a writer."""
        text = os.pread(self.handle, os.fstat(self.handle).st_size, 0)
        lines = (line for line in text.splitlines(keepends=True) if line.endswith(b"\n"))  # not one half written
        noted = [json.loads(line) for line in lines]
        return {_NAMES[name]: message for name, message in reversed(noted)}
