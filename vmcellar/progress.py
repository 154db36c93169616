"""How long work is watched and stopped: one progress sink and one cancel token, passed down from the edge.

Thread behaviour: both may be used from any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from vmcellar.errors import CancelledError

ProgressSink = Callable[[str, int], None]
"""Called as sink(stage, n): n more bytes of `stage` ("export", "compress", "place", "verify", "restore") are done."""


def no_progress(stage: str, count: int) -> None:
    """Drop the report: the sink for callers that do not watch."""


class CancelToken:
    """A flag that the edge sets and every loop of the engine asks; setting it twice is harmless.

    With a `parent` it stops a part of the work alone, and is stopped with the whole.
    """

    def __init__(self, parent: CancelToken | None = None) -> None:
        self._event = threading.Event()
        self._parent = parent

    def cancel(self) -> None:
        """Ask all work that holds this token to stop at its next check."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self._event.is_set() or (self._parent is not None and self._parent.cancelled)

    def check(self) -> None:
        """Raise CancelledError once somebody asked to stop."""
        if self.cancelled:
            raise CancelledError("stopped on request")
