"""Folders: that the hypervisor's account goes through, whatever our umask is; whose names are durable."""

from __future__ import annotations

import os
from pathlib import Path

PASSABLE = 0o711


def make_passable(folder: Path) -> None:
    """Make a folder, and those above it that are missing, so that others may go through it but not list it.

    A folder that is there is left as it is. Modes given to mkdir(2) are cut by the umask, which is 077 for many a root
    and in our systemd units.
    """
    if folder.exists():
        return
    make_passable(folder.parent)
    folder.mkdir(PASSABLE, exist_ok=True)
    folder.chmod(PASSABLE)


def sync_folder(folder: Path) -> None:
    """Make the names in it durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
