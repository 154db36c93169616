"""When backups may begin, and how many that are due at one time are spread out. Pure; local times of day."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from vmcellar.config.units import Window

_DAY_MINUTES = 24 * 60


def seconds_left(window: Window | None, moment: datetime) -> float | None:
    """Seconds until the window that `moment` (a local time with its zone) lies in ends; None without a window, 0 when
    it lies outside.

    Times of day are those of the wall clock, so a window is an hour shorter or longer on the days when clocks change.
    """
    if window is None:
        return None
    length = (window.end - window.start) % _DAY_MINUTES or _DAY_MINUTES
    for days in (0, 1):  # begun today, or yesterday and over midnight
        start = _at(moment - timedelta(days=days), window.start)
        end = start + timedelta(minutes=length)  # of the wall clock: arithmetic within one zone
        if start.timestamp() <= moment.timestamp() < end.timestamp():
            return end.timestamp() - moment.timestamp()
    return 0.0


def _at(day: datetime, minutes: int) -> datetime:
    return day.replace(hour=minutes // 60, minute=minutes % 60, second=0, microsecond=0, fold=0)


def delay(name: str, spread: float) -> float:
    """Seconds within [0, spread) after the due time at which `name` begins: always the same for one name, and evenly
    spread over many, so that a host's VMs do not all begin at once.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return spread * int.from_bytes(digest, "big") / 2**64
