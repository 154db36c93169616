"""Leaving the process without what libraries do when it ends.

Prefect's workers for events and logs hold a process up at its end for as long as they try to reach a server: minutes,
where that is gone. Everything of ours is durable and let go by then.
"""

from __future__ import annotations

import os
import sys
import threading

_hurry = threading.Event()


def hurry() -> None:
    """From now on the process leaves at once when the command has ended."""
    _hurry.set()


def leave(stop: SystemExit) -> None:
    """End the process with the exit code of `stop`, if it is to leave at once."""
    if _hurry.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
