"""The time zone of this host, with its rules for summer time."""

from __future__ import annotations

import os
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

_LOCALTIME = Path("/etc/localtime")


def local_zone() -> tzinfo:
    """What $TZ or /etc/localtime names; the present offset to UTC where neither names a zone."""
    name = os.environ.get("TZ", "").removeprefix(":")
    if not name and _LOCALTIME.exists():
        name = str(_LOCALTIME.resolve()).rpartition("/zoneinfo/")[2]
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError
        return datetime.now(UTC).astimezone().tzinfo or UTC
