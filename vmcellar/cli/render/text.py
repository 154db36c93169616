"""Sizes, rates and times as words."""

from __future__ import annotations

from datetime import datetime

from vmcellar.backup.report import size_text

__all__ = ["seconds_text", "size_text", "time_text"]


def time_text(moment: str) -> str:
    """An RFC 3339 time in the local zone, to the second: `2026-01-31 02:00:07`."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds_text(seconds: float) -> str:
    """Seconds as `0.42 s`, `3 min 5 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
