"""Notes that ask the next backup of a VM on this host to read everything, one file per VM in `<state>/wanted-full/`.

A note holds for as long as the VM has no verified full point of a later instant, so a run that fails or dies changes
nothing, and nobody has to remove it. Written by rename: a crash leaves the old note, the new one, or none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmcellar.folders import fitting

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint

FOLDER = "wanted-full"


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class _Note:
    """Why, and since when (seconds since the epoch)."""

    reason: str
    time: float


_ADAPTER = TypeAdapter(_Note)


def ask(state: Path, vm: str, reason: str, now: float) -> None:
    """Have the next backup of `vm` read everything, until there is a full of a later instant than `now`; a note that is
    there stays if it is as new.
    """
    path = _path(state, vm)
    with suppress(FileNotFoundError, ValidationError):
        if _ADAPTER.validate_json(path.read_bytes()).time >= now:
            return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(_ADAPTER.dump_json(_Note(reason, now)))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def withdraw(state: Path, vm: str) -> None:
    """Remove the note, if there is one."""
    _path(state, vm).unlink(missing_ok=True)


def asked(state: Path, vm: str, points: Sequence[RestorePoint]) -> str:
    """Why the next backup of `vm` must read everything; empty when nothing asks for it. `points` are all of the VM's.

    A note that cannot be understood asks for it, too, since when it was written.
    """
    path = _path(state, vm)
    try:
        note = _ADAPTER.validate_json(path.read_bytes())
        reason, time = note.reason, note.time
    except FileNotFoundError:
        return ""
    except ValidationError:
        reason, time = f"a note that asks for it cannot be read ({path})", path.stat().st_mtime
    done = any(point.verified and point.kind == "full" and point.time > time for point in points)
    return "" if done else reason


def _path(state: Path, vm: str) -> Path:
    name = "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):x}" for c in vm)
    return state / FOLDER / f"{fitting(name)}.json"
