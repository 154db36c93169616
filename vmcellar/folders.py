"""Folders: that the hypervisor's account goes through, whatever our umask is; whose names are durable, and fit."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PASSABLE = 0o711
NAME_MOST = 250
"""Bytes of a file's name to which a suffix of 5 is added: file systems take 255."""


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


def fitting(name: str) -> str:
    """`name`, in which a lone % escapes something, or what stands for it where it is too long for a file's name."""
    if len(os.fsencode(name)) <= NAME_MOST:
        return name
    return f"%%{hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()}"
