"""Wait for a condition with a deadline, the laboratory's only way to synchronise with other processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.shellcommand import LabError

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, *, seconds: float = 60, pause: float = 0.05) -> T:
    """Ask `condition` until it is true and return its value; LabError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(pause)
