"""Pins: a pinned point is dropped by no retention (docs/repository-format.md, section 12)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from vmcellar.errors import IntegrityError, PermanentError, VmcellarError
from vmcellar.repository import layout
from vmcellar.repository.records import Instant, RecordKind
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class Pin:
    """Why a point stays, since when (seconds since the epoch), and the host where it was pinned."""

    note: str
    time: Instant
    host: str


WAITS_NOTE = "a thaw of it is waited for"

_KIND = RecordKind(layout.PINS, layout.PIN_MAGIC, layout.PIN_SEAL, TypeAdapter(Pin))


def pin(repository: Repository, point: RestorePoint, note: str = "") -> Pin:
    """Pin a point, for sure once this returns; PermanentError when it is pinned already, or was dropped meanwhile.
    Raises what the tier raises.
    """
    key = layout.pin_key(point.id)
    if repository.tier.exists(key):
        raise PermanentError(
            f"{point.vm}: restore point {point.id} is pinned already", hint="to change its note, remove the pin first"
        )
    made = Pin(note, repository.clock(), os.uname().nodename)
    _KIND.write(repository.tier, repository.keyring, key, made)
    if not repository.tier.exists(layout.point_key(point.id)):
        with suppress(NotFoundError):
            repository.tier.delete(key)
        raise PermanentError(
            f"{point.vm}: restore point {point.id} is not there any more", hint="`vmcellar list` shows those that are"
        )
    return made


def while_it_waits(repository: Repository, point: RestorePoint, *, waits: bool) -> str:
    """No retention drops a point in the hours that its thaw takes: pin it if it `waits`, unless it is pinned; else take
    that pin away, and no other one. Empty, or what keeps the pin from being so: that ends no restore.
    """
    try:
        found = listed(repository)
        there = found.get(point.id)
        if waits and point.id not in found:
            pin(repository, point, WAITS_NOTE)
        if not waits and there is not None and there.note == WAITS_NOTE:
            unpin(repository, point.id)
    except VmcellarError as error:
        state = "is not pinned, so keep prune from it" if waits else "stays pinned"
        return f"point {point.id} {state}: {error.message}"
    return ""


def unpin(repository: Repository, point_id: str) -> None:
    """Remove a pin; PermanentError when there is none."""
    try:
        repository.tier.delete(layout.pin_key(point_id))
    except NotFoundError as error:
        raise PermanentError(f"restore point {point_id} is not pinned", hint="`vmcellar pin` shows the pins") from error


def pinned(repository: Repository) -> set[str]:
    """The ids of all pinned points. A damaged pin still pins: only names are looked at."""
    return {key.removeprefix(layout.PINS) for key, _ in repository.tier.list(layout.PINS)}


def refuse_lost(repository: Repository, missing: Iterable[str]) -> None:
    """PermanentError when one of these ids, of points that were not found, is still pinned and its point still away.

    A pinned point is dropped by nothing: it went while its pin was being written and whoever dropped it died, or
    somebody removed it by hand. What it needs must stay until a person has looked.
    """
    for name in sorted(missing):
        tier = repository.tier
        if tier.exists(layout.pin_key(name)) and not tier.exists(layout.point_key(name)):
            raise PermanentError(
                f"restore point {name} is pinned, but is not there: nothing is deleted",
                hint=f"fetch {layout.point_key(name)} from a mirror or a copy of the repository; if nobody needs it, "
                f"type `vmcellar pin {name} --remove`",
            )


def listed(repository: Repository) -> dict[str, Pin | None]:
    """What every pin says, by point id; None for one that is damaged."""
    found: dict[str, Pin | None] = {}
    for name in sorted(pinned(repository)):
        try:
            found[name] = _KIND.read(repository.tier, repository.keyring, layout.pin_key(name))
        except IntegrityError:
            found[name] = None
        except NotFoundError:  # removed since the listing
            continue
    return found
