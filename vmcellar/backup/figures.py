"""The figures of a run: what was read, what of it was new, how long each stage took. For points and reports."""

from __future__ import annotations

from typing import TypedDict, TypeVar

from vmcellar.backup.model import (
    CompressResult,
    DiskFigures,
    Entropy,
    ExportResult,
    PlaceResult,
    PointSummary,
    SegmentHandle,
    VerifyResult,
)
from vmcellar.backup.rundir import RunDirectory, stage_file
from vmcellar.backup.runs import Run
from vmcellar.errors import PermanentError
from vmcellar.repository.points import RestorePoint

T = TypeVar("T")

STAGES: tuple[tuple[str, type[ExportResult | CompressResult | PlaceResult | VerifyResult]], ...] = (
    ("export", ExportResult),
    ("compress", CompressResult),
    ("place", PlaceResult),
    ("verify", VerifyResult),
)


class DiskNumbers(TypedDict):
    """The figures of one disk of a point; see DiskRecord."""

    bytes_read: int
    bytes_zero: int
    bytes_changed: int
    bytes_known: int
    bytes_new: int
    bytes_stored: int
    chunks_known: int
    segments: int
    entropy: float | None
    tier: str


def disk_figures(run: Run, target: str, reason: str) -> DiskNumbers:
    """What the run read and stored of one disk.

    Changed is what the new point records: for a full the data alone, for an incremental also what became zero.
    """
    mine = [s for s in run.record.segments if s.target == target]
    exported = [_load(run.directory, s, "export", ExportResult) for s in mine]
    packed = [_load(run.directory, s, "compress", CompressResult) for s in mine]
    placed = {_load(run.directory, s, "place", PlaceResult).tier for s in mine}
    zero = sum(e.zero_read for e in exported)
    read = sum(e.bytes_read for e in exported)
    holes = sum(s.zero for s in mine)
    return DiskNumbers(
        bytes_read=read,
        bytes_zero=zero + holes,
        bytes_changed=read - zero if reason else read + holes,
        bytes_known=sum(e.known for e in exported),
        bytes_new=sum(e.landed + e.direct for e in exported),
        bytes_stored=sum(p.bytes_stored for p in packed),
        chunks_known=sum(e.known_chunks for e in exported),
        segments=len(mine),
        entropy=sum((e.entropy for e in exported), Entropy()).mean,
        tier=", ".join(sorted(placed)),
    )


def stage_seconds(run: Run) -> dict[str, float]:
    """Seconds of work per stage, summed over segments; stages overlap, so the sum exceeds the run's time."""
    return {
        name: round(sum(_load(run.directory, s, name, cls).seconds for s in run.record.segments), 3)
        for name, cls in STAGES
    }


def stage_figures(run: Run) -> list[tuple[str, str, float, int]]:
    """(disk, stage, seconds of work, bytes that it worked on), summed over the disk's segments."""
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for segment in run.record.segments:
        for stage, cls in STAGES:
            result = _load(run.directory, segment, stage, cls)
            seconds, count = found.get((segment.target, stage), (0.0, 0))
            found[segment.target, stage] = seconds + result.seconds, count + _bytes_of(result)
    return [(target, stage, round(seconds, 3), count) for (target, stage), (seconds, count) in found.items()]


def _bytes_of(result: ExportResult | CompressResult | PlaceResult | VerifyResult) -> int:
    if isinstance(result, ExportResult):
        return result.bytes_read
    return result.bytes_plain if isinstance(result, CompressResult) else result.bytes


def summary(run: Run, point: RestorePoint) -> PointSummary:
    """What a report shows of a committed point."""
    return PointSummary(
        id=point.id,
        run_id=run.directory.run_id,
        vm=point.vm,
        kind=point.kind,
        reason=point.reason,
        parent=point.parent,
        time=point.when.isoformat(),
        consistency=point.consistency,
        verified=point.verified,
        freeze_seconds=point.freeze_seconds,
        held_seconds=point.held_seconds,
        bytes_read=point.bytes_read,
        bytes_changed=point.bytes_changed,
        bytes_stored=point.bytes_stored,
        disks=tuple(
            DiskFigures(
                target=d.target,
                size=d.size,
                root=d.root,
                full_reason=d.reason,
                bytes_read=d.bytes_read,
                bytes_zero=d.bytes_zero,
                bytes_changed=d.bytes_changed,
                bytes_known=d.bytes_known,
                bytes_new=d.bytes_new,
                bytes_stored=d.bytes_stored,
            )
            for d in point.disks
        ),
        uncovered=tuple(f"{u.target}: {u.reason}" for u in point.uncovered if not u.expected),
        warnings=point.warnings,
        seconds=point.seconds,
    )


def _load(directory: RunDirectory, segment: SegmentHandle, stage: str, cls: type[T]) -> T:
    result = directory.load(stage_file(segment.target, segment.number, stage), cls)
    if result is None:
        raise PermanentError(
            f"run {directory.run_id}: {stage} of segment {segment.number} of {segment.target} is missing",
            hint="run the backup again",
        )
    return result
