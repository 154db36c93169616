"""Reading the history back from the repository: every point tells of the run that made it.

What no point holds stays absent: runs that failed, the stages' seconds per disk (a point has their sums), bytes per
stage, segments, retries, changes of schedules.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmcellar.catalog.models import Base, Point, Run, RunDisk, Stage
from vmcellar.catalog.proofs import row_of
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository import evidence, layout
from vmcellar.repository.unreadable import unreadable
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

log = logging.getLogger(__name__)

BATCH = 500
"""Points whose rows are written in one transaction."""


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """`points` were there, of which `added` were new to the catalog; `gone` it knew, and they are no more.
    `evidence` of verifications and drills was new to it, too. `unreadable` points are there and damaged, and why.
    """

    points: int
    added: int
    gone: int
    evidence: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def refresh(catalog: Catalog, repository: Repository) -> RebuildReport:
    """`rebuild` from a repository, with its evidence. Raises what the tier and the catalog raise; a point that is
    damaged is named and not taken to be gone, evidence that cannot be read is left out with a warning.
    """
    known = catalog.standing_points()
    damaged = unreadable(repository)
    report = rebuild(catalog, repository.readable_points(), repository.clock(), damaged, known)
    return replace(report, evidence=_add_evidence(catalog, repository), unreadable=damaged)


def _add_evidence(catalog: Catalog, repository: Repository) -> int:
    known, rows = catalog.evidence_ids(), []
    for name in evidence.names(repository.tier):
        if name.key.removeprefix(layout.EVIDENCE) in known:
            continue
        try:
            rows.append(row_of(evidence.read(repository, name), name))
        except (IntegrityError, NotFoundError) as error:  # it went with its point, or is damaged: scrub names it
            log.warning("%s", error.message)
    catalog.add(rows)
    return len(rows)


def rebuild(
    catalog: Catalog,
    points: Sequence[RestorePoint],
    now: float,
    damaged: Collection[str] = (),
    known: Collection[str] | None = None,
) -> RebuildReport:
    """Add what the catalog lacks of these points, which must be all of the repository but for the ids of those that are
    there and `damaged`; nothing is ever deleted. `known` see `Catalog.mark_gone`.

    Rows that a run wrote itself stay as they are: they know more. May run beside backups and be stopped at any time.
    """
    noted = catalog.known_points([point.id for point in points])
    differential = _differential(points)
    missing = [point for point in points if point.id not in noted]
    runs = catalog.known_runs([run_id_of(point) for point in missing])
    for start in range(0, len(missing), BATCH):
        rows: list[Base] = []
        for point in missing[start : start + BATCH]:
            rows.append(point_row(catalog.repository, point))
            if run_id_of(point) not in runs:
                runs.add(run_id_of(point))
                run = run_row(catalog.repository, point, differential=point.id in differential)
                rows += [run, *disk_rows(point), *stage_rows(point)]
        try:
            catalog.add_new(rows)
        except PermanentError:  # a backup that ended meanwhile wrote one of them; whatever else it is comes again
            catalog.add(rows)
    gone = catalog.mark_gone([*(point.id for point in points), *damaged], now, known)
    return RebuildReport(len(points), len(missing), gone)


def run_id_of(point: RestorePoint) -> str:
    """The run that made the point; points of old versions do not name it, so the point's id stands for it."""
    return point.run_id or f"point-{point.id}"


def point_row(repository: str, point: RestorePoint) -> Point:
    """The point as a row."""
    return Point(
        id=point.id,
        repository=repository,
        vm=point.vm,
        run_id=run_id_of(point),
        time=point.time,
        kind=point.kind,
        consistency=point.consistency,
        verified=point.verified,
        disks=len(point.disks),
        bytes_size=sum(disk.size for disk in point.disks),
        bytes_stored=point.bytes_stored,
        parent=point.parent,
    )


def _differential(points: Sequence[RestorePoint]) -> set[str]:
    """The ids of those that were measured against another point of their VM than the one before them."""
    newest: dict[str, str] = {}
    found = set()
    for point in sorted(points, key=lambda each: (each.time, each.id)):
        if point.parent is not None and point.parent != newest.get(point.vm, point.parent):
            found.add(point.id)
        if point.verified:
            newest[point.vm] = point.id
    return found


def run_row(repository: str, point: RestorePoint, *, differential: bool) -> Run:
    """The run that made the point, as far as the point tells; whether it was a differential one, the point does not."""
    return Run(
        id=run_id_of(point),
        repository=repository,
        vm=point.vm,
        started=point.time,
        outcome="done",
        job=point.job,
        kind="differential" if differential else point.kind,
        reason=point.reason,
        finished=point.time + point.run_seconds if point.run_seconds else None,
        point_id=point.id,
        parent=point.parent,
        consistency=point.consistency,
        held_seconds=point.held_seconds,
        freeze_seconds=point.freeze_seconds,
        warnings=list(point.warnings),
        uncovered=[f"{disk.target}: {disk.reason}" for disk in point.uncovered if not disk.expected],
        recorded_by="point",
    )


def disk_rows(point: RestorePoint) -> list[RunDisk]:
    """What the run did with each disk."""
    return [
        RunDisk(
            run_id=run_id_of(point),
            target=disk.target,
            size=disk.size,
            full_reason=disk.reason,
            bytes_read=disk.bytes_read,
            bytes_zero=disk.bytes_zero,
            bytes_changed=disk.bytes_changed,
            bytes_known=disk.bytes_known,
            bytes_new=disk.bytes_new,
            bytes_stored=disk.bytes_stored,
            chunks_known=disk.chunks_known,
            segments=disk.segments,
            entropy=disk.entropy,
            tier=disk.tier,
        )
        for disk in point.disks
    ]


def stage_rows(point: RestorePoint) -> list[Stage]:
    """The seconds of each stage, over all disks."""
    return [
        Stage(run_id=run_id_of(point), target="", stage=stage, seconds=seconds)
        for stage, seconds in point.seconds.items()
    ]
