"""What writers that died left in a tier's staging folder: packs that were built and never placed.

Nothing there is part of the repository, so nothing that a point needs can go with it; what must be left alone is the
work of writers that live. Each of them holds a lease from before its first file, and none goes on with files that are
older than a day.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from vmcellar.repository import leases
from vmcellar.repository.layout import REPOSITORY_DIGITS

if TYPE_CHECKING:
    from vmcellar.repository.leases import FoundLease
    from vmcellar.repository.repository import Repository

LEAST = 24 * 3600.0
"""Seconds for which what was staged stays in any case: the next backup may go on with a run for a quarter of that."""
_OURS = re.compile(r"(commit|rewrite)-[0-9a-f]{32}|repair-[0-9a-f]{16}")
_GOING = "going-"
"""How folders begin that a gc has begun to remove: their files say nothing about their age any more."""


@dataclass(frozen=True, slots=True)
class Left:
    """A folder that nobody comes back for; `name` is below the staging folder, `bytes` what its files take."""

    path: Path
    name: str
    bytes: int


def left_by_the_dead(repository: Repository, others: Iterable[FoundLease], grace: float) -> list[Left]:
    """Folders in which nothing changed for `grace` seconds, and since before any of the living leases began.

    `others` are the leases that live, but for the caller's own. Names that no writer of this repository gives are
    passed over. Raises OSError when the folder cannot be read.
    """
    base = repository.tier.staging_dir()
    began = min((lease.newest.since for lease in others), default=float("inf"))
    before = min(time.time() - max(grace, LEAST), began - leases.SKEW)
    found = [_look(base, path) for path in _folders(base, repository.id.hex()[:REPOSITORY_DIGITS])]
    return [left for left, changed in found if changed < before]


def _folders(base: Path, digits: str) -> Iterator[Path]:
    for path in sorted(base.iterdir()):
        if not path.is_dir() or path.is_symlink():
            continue
        if _OURS.fullmatch(path.name) or path.name.startswith(_GOING):
            yield path
        elif re.fullmatch(f"[0-9a-f]{{8}}-{digits}", path.name):  # runs of one host and state directory
            yield from sorted(run for run in path.iterdir() if run.is_dir() and not run.is_symlink())


def _look(base: Path, path: Path) -> tuple[Left, float]:
    """The folder, and when anything in it changed last."""
    try:
        stats = [path.lstat(), *(inside.lstat() for inside in path.rglob("*"))]
    except FileNotFoundError:  # somebody is at work there
        return Left(path, path.name, 0), float("inf")
    if path.name.startswith(_GOING):
        return Left(path, path.name, 0), 0.0
    size = sum(stat.st_blocks * 512 for stat in stats)
    return Left(path, path.relative_to(base).as_posix(), size), max(stat.st_mtime for stat in stats)


def remove(base: Path, left: Iterable[Left]) -> list[str]:
    """Remove these folders; a note for each that could not be, as that harms nothing. Killed, the next gc goes on."""
    notes = []
    for each in left:
        try:
            going = each.path
            if not each.name.startswith(_GOING):
                going = each.path.rename(base / f"{_GOING}{uuid4().hex}")
            shutil.rmtree(going)
        except OSError as error:
            notes.append(f"staging/{each.name} of a writer that died could not be removed: {error.strerror or error}")
    return notes
