"""Sizes, rates and times as words."""

from __future__ import annotations

from datetime import datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024


def size_text(size: float) -> str:
    """Bytes with a binary unit and three figures: `1.50 GiB`."""
    for unit in _UNITS:
        if size < _STEP or unit == _UNITS[-1]:
            break
        size /= _STEP
    if unit == "B":
        return f"{size:.0f} B"
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"


def time_text(moment: str) -> str:
    """An RFC 3339 time in the local zone, to the second: `2026-01-31 02:00:07`."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds_text(seconds: float) -> str:
    """Seconds as `0.42 s`, `3 min 5 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
