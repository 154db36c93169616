"""Ctrl-C and SIGTERM: the first asks all work to stop cleanly, the second leaves at once.

Works in the main thread alone, as Python's signal handlers do. Leaving at once is safe for what is stored, as a
crash at any instruction is; `vmcellar recover` or the next backup then clears what was left.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken

EXIT_CANCELLED = CancelledError.exit_code
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _nothing() -> None:
    """Do nothing more."""


@contextmanager
def cancel_on_signals(also: Callable[[], object] = _nothing) -> Iterator[CancelToken]:
    """A token that SIGINT and SIGTERM set while the block runs; the handlers from before are put back after it.

    The first signal also calls `also`, from the signal handler.
    """
    token = CancelToken()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if token.cancelled:
            os._exit(EXIT_CANCELLED)
        token.cancel()
        also()
        sys.stderr.write("\nstopping cleanly; press Ctrl-C again to leave at once\n")

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield token
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def leave_on_term() -> Iterator[None]:
    """SIGTERM raises CancelledError where the main thread is, as Ctrl-C raises KeyboardInterrupt, so that all that was
    opened is closed. For what waits for a person and has no work of its own to stop.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise CancelledError("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
