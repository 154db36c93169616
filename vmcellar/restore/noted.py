"""Damage that a check has noted, and that is looked for before a disk is overwritten or a VM started from a point.

A restore into new images reads all of it anyway, and leaves nothing when it fails; a disk that is overwritten would be
left half, and a guest would meet the damage while it runs. A look at the index as long as nothing is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError
from vmcellar.progress import CancelToken
from vmcellar.restore.plan import chosen_disks, chunk_ids
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository


def refuse_noted(repository: Repository, point: RestorePoint, targets: Sequence[str], cancel: CancelToken) -> None:
    """IntegrityError that names VM, disk and byte of the first chunk that failed a check, has no better copy, and still
    cannot be read: a note may be of a fault that has passed. Raises what the tier raises, too.
    """
    lost = repository.index.lost()
    if not lost:
        return
    for disk in chosen_disks(point, targets):
        for rows in repository.map(disk).rows():
            cancel.check()
            for chunk, row in zip(chunk_ids(rows), rows, strict=True):
                if chunk in lost:
                    _try(repository, point, f"disk {disk.target} at byte {int(row['offset'])}", chunk)
                    lost.discard(chunk)


def _try(repository: Repository, point: RestorePoint, place: str, chunk: bytes) -> None:
    try:
        repository.read_objects([chunk])
    except (IntegrityError, NotFoundError) as error:
        raise IntegrityError(
            f"{point.vm}: {place}: {error.message}",
            hint=f"nothing was written; `vmcellar verify {point.id} --deep --repair --from` a copy mends it; else "
            "restore another point, or what is left with --to DIR --best-effort",
        ) from error
