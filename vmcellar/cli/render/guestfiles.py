"""The lines of `vmcellar files … ls`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmcellar.guestfiles.listing import shown

if TYPE_CHECKING:
    from vmcellar.guestfiles.listing import Entry


def entry_lines(entries: Sequence[Entry]) -> Iterator[str]:
    """One line per entry, as `ls -ln` has them, with times in UTC and names that cannot steer a terminal."""
    owners = [f"{one.uid} {one.gid}" for one in entries]
    width = max((len(str(one.size)) for one in entries), default=0)
    owner_width = max((len(owner) for owner in owners), default=0)
    for one, owner in zip(entries, owners, strict=True):
        link = f" -> {shown(one.link)}" if one.link else ""
        when = _when(one.mtime)
        yield f"{one.mode_words} {owner:{owner_width}} {one.size:{width}} {when} {shown(one.name)}{link}"


def _when(mtime: int) -> str:
    try:
        return f"{datetime.fromtimestamp(mtime // 10**9, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # a guest may have set any time
        return f"@{mtime // 10**9}"
