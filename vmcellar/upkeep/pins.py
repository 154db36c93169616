"""Pins: a pinned point is dropped by no retention (docs/repository-format.md, section 12).

A point has a pin of its own, made by a person or once for all (`pin`), and one more for each work that needs it while
it goes on (`hold`): what one work lets go of, another still holds. Nothing but a name decides, so a kill at any step
leaves a point pinned, or not pinned yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from vmcellar.errors import IntegrityError, PermanentError, VmcellarError
from vmcellar.repository import layout
from vmcellar.repository.records import Instant, RecordKind
from vmcellar.tiers.base import ExistsError, NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class Pin:
    """Why a point stays, since when (seconds since the epoch), and the host where it was pinned."""

    note: str
    time: Instant
    host: str


@dataclass(frozen=True, slots=True)
class FoundPin:
    """A pin as it stands: of which point, by which `holder` (in hex; empty for the point's own), and what it says: None
    when it cannot be read.
    """

    point: str
    holder: str
    pin: Pin | None


WAITS_NOTE = "a thaw of it is waited for"

_KIND = RecordKind(layout.PINS, layout.PIN_MAGIC, layout.PIN_SEAL, TypeAdapter(Pin))


def pin(repository: Repository, point: RestorePoint, note: str = "") -> Pin:
    """Give a point its own pin, for sure once this returns; PermanentError when it has it already, or was dropped
    meanwhile. Raises what the tier raises.
    """
    key = layout.pin_key(point.id)
    if repository.tier.exists(key):
        raise PermanentError(
            f"{point.vm}: restore point {point.id} is pinned already", hint="to change its note, remove the pin first"
        )
    return _write(repository, point, key, note)


def hold(repository: Repository, point: RestorePoint, holder: str, note: str) -> None:
    """Pin a point for the work that `holder` names, for sure once this returns, until `let_go` with the same words;
    whoever else holds it. Repeatable. PermanentError when the point was dropped meanwhile.
    """
    key = layout.pin_key(point.id, _name(repository, holder))
    if not repository.tier.exists(key):
        with suppress(ExistsError):
            _write(repository, point, key, note)


def let_go(repository: Repository, point_id: str, holder: str) -> None:
    """The work that `holder` names needs the point no more. Repeatable; other pins stay."""
    with suppress(NotFoundError):
        repository.tier.delete(layout.pin_key(point_id, _name(repository, holder)))


def _name(repository: Repository, holder: str) -> str:
    """Says nothing to who has no key, and is the same each time."""
    return repository.keyring.chunk_id(b"who holds a pin\n" + holder.encode())[: layout.NAME_BYTES].hex()


def _write(repository: Repository, point: RestorePoint, key: str, note: str) -> Pin:
    made = Pin(note, repository.clock(), os.uname().nodename)
    _KIND.write(repository.tier, repository.keyring, key, made)
    if not repository.tier.exists(layout.point_key(point.id)):
        with suppress(NotFoundError):
            repository.tier.delete(key)
        raise PermanentError(
            f"{point.vm}: restore point {point.id} is not there any more", hint="`vmcellar list` shows those that are"
        )
    return made


def while_it_waits(repository: Repository, point: RestorePoint, holder: str, *, waits: bool) -> str:
    """No retention drops a point in the hours that its thaw takes: `holder`, the restore or whatever needs it, holds it
    if it `waits`, else lets it go. Empty, or what keeps that from being so: it ends no restore.
    """
    try:
        if waits:
            hold(repository, point, holder, WAITS_NOTE)
        else:
            let_go(repository, point.id, holder)
    except VmcellarError as error:
        state = "is not pinned, so keep prune from it" if waits else "stays pinned"
        return f"point {point.id} {state}: {error.message}"
    return ""


def unpin(repository: Repository, point_id: str) -> list[FoundPin]:
    """Remove a point's own pin or, when it has none, those of all that hold it: of work whose host is lost nobody else
    ever does. The pins that are left; PermanentError when there was none.
    """
    mine = [each for each in listed(repository) if each.point == point_id]
    if not mine:
        raise PermanentError(f"restore point {point_id} is not pinned", hint="`vmcellar pin` shows the pins")
    going = [each for each in mine if not each.holder] or mine
    for each in going:
        with suppress(NotFoundError):
            repository.tier.delete(layout.pin_key(point_id, each.holder))
    return [each for each in mine if each not in going]


def pinned(repository: Repository) -> set[str]:
    """The ids of all pinned points. A damaged pin still pins: only names are looked at."""
    return {layout.split_pin(key)[0] for key, _ in repository.tier.list(layout.PINS)}


def for_good(repository: Repository) -> set[str]:
    """The ids of points that have a pin of their own: no work ends it."""
    named = (layout.split_pin(key) for key, _ in repository.tier.list(layout.PINS))
    return {point for point, holder in named if not holder}


def refuse_lost(repository: Repository, missing: Iterable[str]) -> None:
    """PermanentError when one of these ids, of points that were not found, is still pinned and its point still away.

    A pinned point is dropped by nothing: it went while its pin was being written and whoever dropped it died, or
    somebody removed it by hand. What it needs must stay until a person has looked.
    """
    for name in sorted(missing):
        if name in pinned(repository) and not repository.tier.exists(layout.point_key(name)):
            raise PermanentError(
                f"restore point {name} is pinned, but is not there: nothing is deleted",
                hint=f"fetch {layout.point_key(name)} from a mirror or a copy of the repository; if nobody needs it, "
                f"type `vmcellar pin {name} --remove` until it says that nothing pins it",
            )


def listed(repository: Repository) -> list[FoundPin]:
    """Every pin, by point, a point's own first."""
    found = []
    for point, holder in sorted(layout.split_pin(key) for key, _ in repository.tier.list(layout.PINS)):
        try:
            said = _KIND.read(repository.tier, repository.keyring, layout.pin_key(point, holder))
        except IntegrityError:
            said = None
        except NotFoundError:  # removed since the listing
            continue
        found.append(FoundPin(point, holder, said))
    return found
