"""guard: what stands between a commit and a gc that runs beside it (format page, section 12; pitfall 20).

gc marks a pack, later looks at all leases, then at all points, and only then deletes. A commit writes its point, then
looks whether its lease is still there. Whichever way the two interleave, either gc sees the lease or the point, or the
commit finds that its lease was taken away, and takes its point back. No clock is part of this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError, PermanentError, VmcellarError
from vmcellar.repository import layout, withdrawn
from vmcellar.repository.layout import ABSENT, ID_BYTES, point_key
from vmcellar.repository.packs import Location, PackRef
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.leases import HeldLease
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

_log = logging.getLogger(__name__)
_AGAIN = "run the backup again: it stores these pieces anew"


class GoneError(PermanentError):
    """What a point needs is gone, or gc may delete it before it sees the point."""


class Guard:
    """Watches one commit; used by one thread, after the index was refreshed for writing."""

    def __init__(self, repository: Repository, lease: HeldLease | None, point: RestorePoint) -> None:
        """Without a lease, every mark counts against the commit; with one, those that it knew when it began."""
        self._repository = repository
        self._lease = lease
        self._point = point
        self._parent = point_key(point.parent) if point.parent else None
        self._packs: dict[bytes, PackRef] = {}
        self._inherited: set[bytes] | None = None
        self._forbidden = self._marked()

    def _marked(self) -> frozenset[bytes]:
        known = self._repository.index.marks()
        counted = [packs for name, packs in known.items() if self._lease is None or name in self._lease.known]
        return frozenset().union(*counted)

    def relies_on(self, found: Mapping[bytes, Location]) -> None:
        """Take in what the point refers to; PermanentError when gc may delete one of these before it sees the point."""
        self._packs.update((location.pack.id, location.pack) for location in found.values())
        if not self._forbidden:
            return
        for wanted, packs in self._repository.index.holders(found).items():
            if packs <= self._forbidden and wanted not in self._of_parent():
                raise GoneError(
                    f"{self._point.vm}: gc is about to delete what this backup relies on (object {wanted.hex()}): "
                    "nothing was committed",
                    hint=_AGAIN,
                )

    def _of_parent(self) -> set[bytes]:
        """All ids that the parent refers to: as long as it is there, gc keeps them."""
        if self._inherited is None:
            self._inherited = set()
            if self._point.parent is not None and self._parent_is_there():
                parent = self._repository.point(self._point.parent)
                self._inherited.update(*_needed_by(self._repository, parent))
        return self._inherited

    def _parent_is_there(self) -> bool:
        return self._parent is None or self._repository.tier.exists(self._parent)

    def before_point(self) -> None:
        """The last look before the point is written. TransientError or PermanentError as `after_point`."""
        self._look()

    def after_point(self) -> None:
        """The look after which nothing that the point needs can go; on any error the point is taken back."""
        try:
            self._look()
        except VmcellarError:
            self.take_back()
            raise

    def _look(self) -> None:
        if self._lease is not None:
            self._lease.check()
        else:
            self._check_marks()
        if not self._parent_is_there():
            raise GoneError(
                f"{self._point.vm}: restore point {self._point.parent}, which this backup builds on, was dropped "
                "meanwhile: nothing was committed",
                hint="run the backup again",
            )
        for pack in self._packs.values():
            if not self._repository.tier.exists(pack.key):
                raise GoneError(
                    f"{self._point.vm}: pack {pack.key}, which this backup relies on, is gone: nothing was committed",
                    hint=f"{_AGAIN}; if it comes again, type `vmcellar rebuild-index`, then `vmcellar verify --all`",
                )

    def _check_marks(self) -> None:
        self._repository.index.refresh(writing=True)
        marked = self._marked()
        if marked - self._forbidden and self._packs.keys() & (marked - self._forbidden):
            raise GoneError(
                f"{self._point.vm}: gc has marked a pack that this backup relies on: nothing was committed",
                hint=_AGAIN,
            )

    def take_back(self) -> None:
        """Remove the point if it is there; a failure is logged, since an error is on its way already: who has the run's
        directory settles it (`doubt`).
        """
        try:
            withdraw(self._repository, self._point.id)
        except VmcellarError as error:
            key = layout.point_key(self._point.id)
            _log.error("%s could not be taken back now and may not restore: %s", key, error.message)


def withdraw(repository: Repository, point: str) -> None:
    """Take a point back that no commit vouched for; harmless when it is gone. Raises what the tier raises."""
    key, data = layout.point_key(point), None
    with suppress(VmcellarError):
        data = repository.tier.get(key)
    with suppress(NotFoundError):
        repository.tier.delete(key)
    if data is not None:
        withdrawn.note(repository, point, data)


def doubt(repository: Repository, point: RestorePoint) -> str:
    """Why a point may lose what it needs, or has lost it, whose writer died or failed before its last look; empty when
    nothing of it can go any more. For who has no lease of that time: all marks count. Raises what the tier raises.
    """
    repository.index.refresh(writing=True)
    parent = point.parent
    if parent is not None and not repository.tier.exists(point_key(parent)):
        parent = None  # pruned since, perhaps; nothing is taken for its heritage then
    guard = Guard(repository, None, replace(point, parent=parent))
    try:
        for batch in _needed_by(repository, point):
            wanted = set(batch) - {ABSENT}
            found = repository.index.locate(wanted)
            if wanted - found.keys():
                return f"the index does not have object {min(wanted - found.keys()).hex()}, which it needs"
            guard.relies_on(found)
        guard.before_point()
    except (GoneError, IntegrityError, NotFoundError) as error:
        return error.message
    return ""


def _needed_by(repository: Repository, point: RestorePoint) -> Iterator[list[bytes]]:
    """All ids that a point refers to, some at a time."""
    for artifact in point.artifacts:
        yield [bytes.fromhex(chunk) for chunk in artifact.chunks]
    for disk in point.disks:
        disk_map = repository.map(disk)
        yield from disk_map.node_ids()
        for rows in disk_map.rows():
            data = rows["chunk"].tobytes()
            yield [data[start : start + ID_BYTES] for start in range(0, len(data), ID_BYTES)]
