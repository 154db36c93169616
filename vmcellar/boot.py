"""Which boot of this host it is: what was noted under another one belongs to processes that are gone."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """The kernel's random name of this boot, a UUID as text (random(4), /proc/sys/kernel/random/boot_id).

    OSError where there is no /proc.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
