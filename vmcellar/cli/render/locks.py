"""Held locks as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from vmcellar.cli.hostlocks import HostLock
from vmcellar.cli.render.text import time_text


def locks_table(locks: Iterable[HostLock]) -> Table:
    """A row per lock."""
    table = Table("VM", "host", "pid", "since", "boot", "command", box=None, pad_edge=False)
    for lock in locks:
        table.add_row(
            lock.vm, lock.host, lock.pid, time_text(lock.since) if lock.since else "?", lock.boot[:8], lock.command
        )
    return table
