"""Folders that the hypervisor's account goes through, whatever our umask is."""

from __future__ import annotations

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
