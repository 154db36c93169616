"""commit: write the restore point last, when everything that it needs is durable and verified.

Order: packs (placed and verified by earlier stages), the nodes of the new maps, the index part, the point. After it
the run's checkpoint is a parent; a crash before it leaves garbage for gc and an orphan checkpoint for recover,
never a broken point.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmcellar import __version__
from vmcellar.backup import lineage
from vmcellar.backup.cataloguing import note_committed
from vmcellar.backup.compress import exported_segment
from vmcellar.backup.export import PLACE_ZERO
from vmcellar.backup.figures import disk_figures, stage_seconds, summary
from vmcellar.backup.model import PointSummary, ReleaseResult, VerifyResult
from vmcellar.backup.place import compressed
from vmcellar.backup.rundir import COMMITTED, stage_file
from vmcellar.backup.runs import ARTIFACTS, RELEASED, Run, RunRecord
from vmcellar.errors import PermanentError, VmcellarError
from vmcellar.repository.layout import ROW, level_for
from vmcellar.repository.nodes import Rows, zero_rows
from vmcellar.repository.pack_format import Table
from vmcellar.repository.points import DiskRecord, RestorePoint, UncoveredDisk, new_point_id
from vmcellar.sources.base import SourceDisk

if TYPE_CHECKING:
    from vmcellar.engine import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _DiskResult:
    """The new map of one disk: its record, and the nodes that its map adds."""

    record: DiskRecord
    nodes: dict[bytes, bytes]


def commit(engine: Engine, run_id: str) -> PointSummary:
    """Make the run a restore point. PermanentError when a segment is not verified; nothing is committed then.

    Afterwards the run's directory is gone and old checkpoints of the VM are merged away; a failure of that tidying
    is logged, and the next backup does it.
    """
    run = engine.run(run_id)
    released = run.directory.load(RELEASED, ReleaseResult)
    if released is None:
        raise PermanentError(f"run {run_id}: the VM has not been released", hint="run the backup again")
    tables = _verified_tables(run)
    disks = [_disk(engine, run, disk) for disk in run.record.capture.disks]
    nodes = {node: data for disk in disks for node, data in disk.nodes.items()}
    point = _point(run, released, [disk.record for disk in disks])
    committed = engine.repository.commit(tables, nodes, _artifacts(run), point, engine.cpu)
    _note_looked_at(run, committed)
    note_committed(engine, run, committed)
    result = summary(run, committed)
    _tidy(engine, run)
    return result


def _verified_tables(run: Run) -> dict[bytes, Table]:
    """Pack id to table of contents, of all packs of the run; each must have been verified."""
    tables: dict[bytes, Table] = {}
    for segment in run.record.segments:
        packed = compressed(run.directory, segment.target, segment.number)
        checked = run.directory.load(stage_file(segment.target, segment.number, "verify"), VerifyResult)
        if checked is None or checked.packs != tuple(pack.id for pack in packed.packs):
            raise PermanentError(
                f"{run.record.request.vm}: segment {segment.number} of {segment.target} is not verified",
                hint="run the backup again; an unverified point is never committed",
            )
        if packed.packs:
            stored = run.directory.load_arrays(stage_file(segment.target, segment.number, "packs", "npz"))
            tables.update({bytes.fromhex(name): table for name, table in stored.items()})
    return tables


def _disk(engine: Engine, run: Run, disk: SourceDisk) -> _DiskResult:
    reason = run.record.disk_reasons.get(disk.target, "")
    changes = _changes(run, disk.target)
    if reason or run.record.parent is None:
        base = engine.repository.empty_map(disk.size)
    else:
        base = engine.repository.map(engine.repository.point(run.record.parent).disk(disk.target))
    root, nodes = base.replace(changes, disk.size)
    record = DiskRecord(
        target=disk.target,
        size=disk.size,
        root=root.hex(),
        level=level_for(disk.size),
        format=disk.format,
        identity=disk.identity,
        serial=disk.serial,
        image=disk.image,
        reason=reason,
        **disk_figures(run, disk.target, reason),
    )
    return _DiskResult(record, nodes)


def _changes(run: Run, target: str) -> Rows:
    """What the run recorded of a disk, as rows of a map; an all-zero chunk id is a range that is zero now."""
    parts: list[Rows] = []
    for segment in (s for s in run.record.segments if s.target == target):
        _, landed = exported_segment(run.directory, target, segment.number)
        rows = np.zeros(len(landed), ROW)
        rows["offset"], rows["length"] = landed["offset"], landed["length"]
        data = landed["place"] != PLACE_ZERO
        rows["chunk"][data] = landed["chunk"][data]
        parts.append(rows)
        parts += [zero_rows(offset, length) for offset, length in run.segment(target, segment.number).zero]
    every: Rows = np.concatenate(parts) if parts else np.zeros(0, ROW)
    return every[np.argsort(every["offset"], kind="stable")]


def _point(run: Run, released: ReleaseResult, disks: list[DiskRecord]) -> RestorePoint:
    record, capture = run.record, run.record.capture
    return RestorePoint(
        id=point_of(record, run.directory.run_id),
        vm=capture.vm,
        vm_uuid=capture.vm_uuid,
        time=capture.began,
        kind=record.kind,
        reason=record.reason,
        parent=record.parent,
        consistency=capture.consistency,
        consistency_reason=capture.consistency_reason,
        verified=True,
        checkpoint=capture.checkpoint,
        checkpoint_xml=capture.checkpoint_xml,
        disks=tuple(disks),
        uncovered=tuple(UncoveredDisk(u.target, u.reason, u.expected) for u in capture.uncovered),
        warnings=record.warnings,
        bytes_read=sum(disk.bytes_read for disk in disks),
        bytes_changed=sum(disk.bytes_changed for disk in disks),
        bytes_stored=sum(disk.bytes_stored for disk in disks),
        bytes_zero=sum(disk.bytes_zero for disk in disks),
        bytes_known=sum(disk.bytes_known for disk in disks),
        freeze_seconds=capture.freeze_seconds,
        held_seconds=released.held,
        seconds=stage_seconds(run),
        run_seconds=round(max(0.0, time.time() - capture.began), 3),
        run_id=run.directory.run_id,
        job=record.request.job,
        tool=f"vmcellar {__version__}",
    )


def point_of(record: RunRecord, run_id: str) -> str:
    """The id of the run's point: a commit that is tried again must not make a second one."""
    return new_point_id(record.capture.began, run_id)


def _artifacts(run: Run) -> dict[str, bytes]:
    return {name: data.tobytes() for name, data in run.directory.load_arrays(ARTIFACTS).items()}


def _note_looked_at(run: Run, committed: RestorePoint) -> None:
    """Without it, as where the state directory is full, the point is only looked at once more, if this process dies."""
    try:
        run.directory.save(COMMITTED, committed.id)
    except OSError as error:
        log.warning("%s: that point %s is committed is not noted: %s", committed.vm, committed.id, error)


def _tidy(engine: Engine, run: Run) -> None:
    run_id, vm = run.directory.run_id, run.record.request.vm
    engine.forget(run_id)
    try:
        engine.landing.drop_run(run_id)
        engine.drop_staged(run_id)
    except OSError as error:
        log.warning("%s: what run %s left in the landing zone stays for now: %s", vm, run_id, error)
        return  # with its folder, by which the next backup finds it
    run.directory.remove()
    try:
        kept = [record.name for record in lineage.kept(engine.config, vm, engine.repository.points_of(vm))]
        engine.source.reconcile(vm, engine.repository.id.hex(), kept, [])
    except VmcellarError as error:
        log.warning("%s: old checkpoints stay for now: %s", vm, error)
