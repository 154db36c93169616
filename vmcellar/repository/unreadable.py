"""Points whose record cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmcellar.errors import VmcellarError
from vmcellar.repository import layout
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository


def unreadable(repository: Repository) -> dict[str, str]:
    """The points whose record cannot be read, and why: damaged, forged, or put under another's name."""
    known = {point.id for point in repository.readable_points()}
    found = {}
    for key, _ in repository.tier.list(layout.POINTS):
        name = key.removeprefix(layout.POINTS)
        if name not in known:
            try:
                repository.point(name)
            except NotFoundError:
                continue
            except VmcellarError as error:
                found[name] = error.message
    return found
