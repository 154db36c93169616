"""Held locks and leases as tables."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from vmcellar.cli.hostlocks import HostLock
from vmcellar.cli.render.text import time_text
from vmcellar.repository.leases import FoundLease


def locks_table(locks: Iterable[HostLock]) -> Table:
    """A row per lock."""
    table = Table("VM", "host", "pid", "since", "boot", "command", box=None, pad_edge=False)
    for lock in locks:
        table.add_row(
            lock.vm, lock.host, lock.pid, time_text(lock.since) if lock.since else "?", lock.boot[:8], lock.command
        )
    return table


def lease_json(lease: FoundLease, now: float) -> dict[str, Any]:
    """The fields of a lease in `locks --json`; `stale`: it does not count any more."""
    held = lease.newest
    return {
        "lease": lease.id,
        "what": held.what,
        "host": held.host,
        "pid": str(held.pid),
        "since": _rfc3339(held.since),
        "expires": _rfc3339(held.expires),
        "boot": held.boot,
        "stale": lease.stale(now),
    }


def leases_table(found: Iterable[FoundLease], now: float) -> Table:
    """A row per lease."""
    table = Table("lease", "host", "pid", "since", "boot", "until", box=None, pad_edge=False)
    for lease in found:
        held = lease.newest
        until = "stale" if lease.stale(now) else time_text(_rfc3339(held.expires))
        table.add_row(held.what, held.host, str(held.pid), time_text(_rfc3339(held.since)), held.boot[:8], until)
    return table


def _rfc3339(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
