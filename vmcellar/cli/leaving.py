"""Entering the process with all standard streams, and leaving it without what libraries do when it ends.

Prefect's workers for events and logs hold a process up at its end for as long as they try to reach a server: minutes,
where that is gone. Everything of ours is durable and let go by then.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

_hurry = threading.Event()


def open_closed_streams() -> None:
    """Open those of stdin, stdout and stderr that the caller closed on the null device.

    Else the next file that is opened gets the number of one, and whatever a program of ours prints goes into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    null = Path(os.devnull)
    sys.stdin = null.open(encoding="utf-8") if sys.stdin is None else sys.stdin
    sys.stdout = null.open("w", encoding="utf-8") if sys.stdout is None else sys.stdout
    sys.stderr = null.open("w", encoding="utf-8") if sys.stderr is None else sys.stderr


def hurry() -> None:
    """From now on the process leaves at once when the command has ended."""
    _hurry.set()


def leave(stop: SystemExit) -> None:
    """End the process with the exit code of `stop`, if it is to leave at once."""
    if _hurry.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
