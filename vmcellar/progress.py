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
    """A flag that the edge sets and every loop of the engine asks; setting it twice is harmless."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask all work that holds this token to stop at its next check."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise CancelledError once somebody asked to stop."""
        if self._event.is_set():
            raise CancelledError("stopped on request")

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`; True as soon as somebody asked to stop."""
        return self._event.wait(seconds)
