"""The time zone of this host, with its rules for summer time."""

from __future__ import annotations

import os
from datetime import UTC, datetime, tzinfo
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

_LOCALTIME = Path("/etc/localtime")
_NAME = Path("/etc/timezone")
_ZONES = Path("/usr/share/zoneinfo")


def local_zone() -> tzinfo:
    """What $TZ or /etc/localtime names, or has the rules of; the present offset to UTC where no zone has them."""
    name = os.environ.get("TZ", "").removeprefix(":")
    if not name and _LOCALTIME.exists():
        path = _LOCALTIME.resolve()
        name = str(path).partition("/zoneinfo/")[2] or _same_as(path)
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError
        return datetime.now(UTC).astimezone().tzinfo or UTC


@cache
def _same_as(path: Path) -> str:
    """The zone of which a file is a copy, as images of containers have it; empty where there is none."""
    try:
        rules = path.read_bytes()
        named = _NAME.read_text().strip() if _NAME.exists() else ""
    except (OSError, UnicodeDecodeError):
        return ""
    known = sorted(available_timezones(), key=lambda name: (name != named, name))
    return next((name for name in known if _rules_of(name) == rules), "")


def _rules_of(name: str) -> bytes:
    try:
        return (_ZONES / name).read_bytes()
    except OSError:
        return b""
