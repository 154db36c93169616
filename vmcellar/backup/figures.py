"""The figures of a run: what was read, what of it was new, how long each stage took. For points and reports."""

from __future__ import annotations

from typing import NamedTuple, TypedDict, TypeVar

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
from vmcellar.backup.retries import failures
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


class SegmentNumbers(TypedDict):
    """The figures of one segment; see `catalog.models.Segment`."""

    target: str
    number: int
    bytes_read: int
    bytes_zero: int
    bytes_changed: int
    bytes_known: int
    bytes_new: int
    bytes_stored: int
    chunks_known: int
    export_seconds: float
    compress_seconds: float
    place_seconds: float
    verify_seconds: float
    entropy: float | None
    tier: str
    retries: int


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


class StageNumbers(NamedTuple):
    """What a stage did for one disk: seconds of work, bytes that it worked on, how often it was done again."""

    seconds: float = 0.0
    bytes: int = 0
    retries: int = 0


def stage_figures(run: Run) -> dict[tuple[str, str], StageNumbers]:
    """By disk and stage, summed over the disk's segments."""
    found: dict[tuple[str, str], StageNumbers] = {}
    for segment in run.record.segments:
        for stage, cls in STAGES:
            result = _load(run.directory, segment, stage, cls)
            before = found.get((segment.target, stage), StageNumbers())
            found[segment.target, stage] = StageNumbers(
                round(before.seconds + result.seconds, 3),
                before.bytes + _bytes_of(result),
                before.retries + failures(run.directory, segment.target, segment.number, stage),
            )
    return found


def segment_figures(run: Run) -> list[SegmentNumbers]:
    """What the run did with each segment; summed over a disk's segments it is what `disk_figures` gives."""
    return [_segment_numbers(run, segment) for segment in run.record.segments]


def _segment_numbers(run: Run, segment: SegmentHandle) -> SegmentNumbers:
    exported = _load(run.directory, segment, "export", ExportResult)
    packed = _load(run.directory, segment, "compress", CompressResult)
    placed = _load(run.directory, segment, "place", PlaceResult)
    checked = _load(run.directory, segment, "verify", VerifyResult)
    full = bool(run.record.disk_reasons.get(segment.target, ""))
    data, read = exported.bytes_read - exported.zero_read, exported.bytes_read
    return SegmentNumbers(
        target=segment.target,
        number=segment.number,
        bytes_read=read,
        bytes_zero=exported.zero_read + segment.zero,
        bytes_changed=data if full else read + segment.zero,
        bytes_known=exported.known,
        bytes_new=exported.landed + exported.direct,
        bytes_stored=packed.bytes_stored,
        chunks_known=exported.known_chunks,
        export_seconds=round(exported.seconds, 3),
        compress_seconds=round(packed.seconds, 3),
        place_seconds=round(placed.seconds, 3),
        verify_seconds=round(checked.seconds, 3),
        entropy=exported.entropy.mean,
        tier=placed.tier,
        retries=sum(failures(run.directory, segment.target, segment.number, stage) for stage, _ in STAGES),
    )


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
