"""Room in a directory for whoever makes room: on a full file system prune and gc could not even write their leases.

A file that holds blocks and says nothing lies in the tier's folder, and is no object of it. A work that deletes gives
it up when nothing else is left, and it is made again at the end of the next one that finds room.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from uuid import uuid4

RESERVE = "reserve"
BYTES = 64 << 20
"""Room for leases, marks, and the largest index part: gc writes one anew before it deletes what it replaces."""

SHARE = 100
"""It is made only where that many times as much is free: it must never be what fills a small place."""

_log = logging.getLogger(__name__)


def keep(folder: Path, staging: Path) -> None:
    """Make it if it is not there and there is room. Never raises: it is for a day that may not come."""
    path, new = folder / RESERVE, staging / f"put-{uuid4().hex}"
    try:
        if path.exists() or shutil.disk_usage(folder).free < BYTES * SHARE:
            return
        with new.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, BYTES)
            os.fsync(file.fileno())
        new.rename(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        _log.info("no room is reserved in %s: %s", folder, error)


def spend(folder: Path) -> bool:
    """Give it up; False when it is not there, or cannot go."""
    try:
        (folder / RESERVE).unlink()
    except OSError:
        return False
    _log.warning("%s is full: what was reserved there for prune and gc is used now", folder)
    return True
