"""snapshot: settle what earlier runs left, hold one instant of all disks, and plan what is read of it.

The order is what makes a crash harmless: the run directory first, then the backup job, then `run.json`. A run
without `run.json` is a leftover, its job is aborted by the next `recover`, and its checkpoint is never a parent
(pitfall 2).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vmcellar.backup import clean_check, heal, leaving, lineage, planning, recover, wanted_full
from vmcellar.backup.cut_off import cut_off
from vmcellar.backup.leaving import Leaving
from vmcellar.backup.model import BackupRequest, Kind, RunHandle, SegmentHandle
from vmcellar.backup.rundir import REQUEST_FILE, RUN_FILE, RunDirectory
from vmcellar.backup.runs import ARTIFACTS, PLAN, Run, RunRecord, plan_rows
from vmcellar.backup.scratch import guarded
from vmcellar.errors import PermanentError
from vmcellar.policy.retention import CLOCKS_APART
from vmcellar.progress import CancelToken
from vmcellar.repository import evidence, left_out
from vmcellar.repository.left_out import LeftOut
from vmcellar.repository.points import RestorePoint
from vmcellar.sources.base import Capture, CaptureRequest, Extent, SourceDisk

if TYPE_CHECKING:
    from vmcellar.engine import Engine


class _Parent(NamedTuple):
    """The point that a backup is incremental to, what that left out, and why all is read nonetheless; `points` are all
    of the VM's, oldest first.
    """

    point: RestorePoint | None
    left_out: LeftOut
    doubt: str
    points: Sequence[RestorePoint]


def snapshot(engine: Engine, request: BackupRequest, cancel: CancelToken) -> RunHandle:
    """Begin a run, or go on with one that died; the caller holds `engine.vm_lock`.

    A run is gone on with if its instant is still held or had landed whole. Raises TransientError while something
    else works on the VM, PermanentError with what to do.
    """
    resumable = recover.settle(engine, request.vm, request)
    if resumable is not None:
        return resumable.handle(resumed=True)
    points = engine.repository.points_of(request.vm)
    parent, doubt = _parent(engine, request, points)
    earlier, changed = leaving.before(engine.repository, parent, request.exclude_paths)
    run_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"
    directory = engine.run_directory(run_id)
    directory.create()
    directory.save(REQUEST_FILE, request)
    try:
        run = _begin(engine, request, directory, _Parent(parent, earlier, doubt or changed, points), cancel)
    except BaseException:
        directory.remove()
        raise
    engine.remember(run)
    return run.handle(resumed=False)


def _begin(
    engine: Engine,
    request: BackupRequest,
    directory: RunDirectory,
    parent: _Parent,
    cancel: CancelToken,
) -> Run:
    _have_epoch(engine)
    capture = engine.source.begin(_capture_request(engine, request, directory.run_id, parent))
    stop = CancelToken(cancel)
    try:
        with guarded(capture, stop):
            left = leaving.look(capture, request.exclude_paths, parent.left_out, stop)
            run = _plan(engine, request, directory, capture, parent, left, stop)
            cancel.check()
    except BaseException:
        capture.end()
        raise
    return run


def _have_epoch(engine: Engine) -> bytes:
    """The key that packs are sealed under: its first use asks the tier, for which no VM is to be held."""
    return engine.repository.keyring.epoch_id


def _parent(engine: Engine, request: BackupRequest, every: Sequence[RestorePoint]) -> tuple[RestorePoint | None, str]:
    """The newest verified point, or full point for a differential; or None, and why, when evidence speaks against it or
    what it was made from, a note asks for it, or a differential has no base: then all is read anew.
    """
    points = [p for p in every if p.verified]
    newest = points[-1] if points else None
    parent = lineage.base_of(every) if request.mode == "differential" else newest
    if parent and parent.id in evidence.doubtful(every, evidence.standings(engine.repository.tier)):
        return None, f"evidence speaks against point {parent.id} or one that it was made from"
    asked = wanted_full.asked(engine.state, request.vm, every)
    if asked:
        return None, asked
    if request.mode == "incremental" and not points:
        raise PermanentError(
            f"{request.vm}: there is no verified restore point to be incremental to",
            hint=f"type `vmcellar backup {request.vm}` without a mode: the first backup is a full one",
        )
    if newest and request.mode == "differential" and (parent is None or not parent.checkpoint):
        why = "there is none" if parent is None else f"point {parent.id} has no checkpoint"
        return None, f"no full point to be differential to: {why}"
    return parent, ""


def _capture_request(engine: Engine, request: BackupRequest, run_id: str, parent: _Parent) -> CaptureRequest:
    chain = lineage.kept(engine.config, request.vm, parent.points)
    base = parent.point.checkpoint if parent.point and request.mode == "differential" else ""
    previous = leaving.previous_disks(parent.point) if parent.point else ()
    return CaptureRequest(
        vm=request.vm,
        run_id=run_id,
        repository_id=engine.repository.id.hex(),
        chain=chain,
        base=base,
        previous=previous,
        excluded=frozenset(request.exclude_disks),
        force_full="a full backup was asked for" if request.mode == "full" else parent.doubt,
        freeze_timeout=engine.config.limits.freeze,
        start_paused=request.start_paused,
    )


def _plan(
    engine: Engine,
    request: BackupRequest,
    directory: RunDirectory,
    capture: Capture,
    parent: _Parent,
    left: Leaving,
    cancel: CancelToken,
) -> Run:
    reasons: dict[str, str] = {}
    arrays: dict[str, np.ndarray] = {}
    handles: list[SegmentHandle] = []
    warnings = [*capture.result.warnings, *left.warnings, *_ahead(capture, parent.points)]
    planned = {
        disk.target: _extents(engine, capture, disk, parent.point, left, warnings, cancel)
        for disk in capture.result.disks
    }
    if request.mode == "differential" and parent.point is not None:
        planned = _all_or_none(capture, planned, parent.points, parent.point, left)
    for disk in capture.result.disks:
        extents, reason = planned[disk.target]
        if reason:
            reasons[disk.target] = reason
        parts = planning.segments(extents, engine.config.limits.segment)
        arrays[disk.target] = plan_rows(parts)
        handles += [SegmentHandle(disk.target, p.number, p.read_bytes, p.zero_bytes) for p in parts]
    kind: Kind = "full" if len(reasons) == len(capture.result.disks) else "incremental"
    record = RunRecord(
        request=request,
        capture=replace(capture.result, disks=left.marked(capture.result.disks)),
        kind=kind,
        reason="; ".join(sorted(set(reasons.values()))) if kind == "full" else "",
        parent=parent.point.id if parent.point and kind == "incremental" else None,
        disk_reasons=reasons,
        segments=tuple(handles),
        warnings=tuple(warnings),
    )
    kept = dict(capture.artifacts)
    if left.now.paths:
        kept[left_out.ARTIFACT] = left_out.encode(left.now)
    artifacts = {name: np.frombuffer(data, np.uint8) for name, data in kept.items()}
    directory.save_arrays(ARTIFACTS, artifacts)
    directory.save_arrays(PLAN, arrays)
    directory.save(RUN_FILE, record)
    return Run(directory, record, capture)


def _all_or_none(
    capture: Capture,
    planned: dict[str, tuple[list[Extent], str]],
    points: Sequence[RestorePoint],
    base: RestorePoint,
    left: Leaving,
) -> dict[str, tuple[list[Extent], str]]:
    """What is planned of each disk, but all of every disk once the base's bitmap is not to be trusted for one: so this
    point is a full one, and the base of the next differential.
    """
    tracked = [disk.target for disk in capture.result.disks if disk.tracked]
    doubts = [f"{target}: {reason}" for target in tracked if (reason := planned[target][1])]
    doubt = "; ".join(doubts) or lineage.read_anew(points, base, tracked)
    if not doubt:
        return planned
    why = f"point {base.id} is given up as the base of differential backups: {doubt}"
    return {
        target: (extents, reason)
        if reason
        else (left.full(target, planning.full_extents(capture.allocated(target))), why)
        for target, (extents, reason) in planned.items()
    }


def _ahead(capture: Capture, points: Sequence[RestorePoint]) -> list[str]:
    """A warning of a point that a clock which was ahead made: until its time, it is the one that is called latest."""
    newest = next((point for point in reversed(points) if point.verified), None)
    if newest is None or newest.time <= capture.result.began + CLOCKS_APART:
        return []
    vm = capture.result.vm
    return [
        f"point {newest.id} is of a later time than this host's clock has: {vm}@latest names it, not this backup, "
        f"until then. Is the clock right? If so, name points of {vm} by their ids (`vmcellar list {vm}`)"
    ]


def _extents(
    engine: Engine,
    capture: Capture,
    disk: SourceDisk,
    parent: RestorePoint | None,
    left: Leaving,
    warnings: list[str],
    cancel: CancelToken,
) -> tuple[list[Extent], str]:
    """What is to be recorded of a disk, and why all of it (empty for an incremental)."""
    allocated = capture.allocated(disk.target)
    dirty = None if disk.full_reason else capture.dirty(disk.target)
    if dirty is None or parent is None:
        return left.full(disk.target, planning.full_extents(allocated)), disk.full_reason or "first backup"
    dirty = heal.beside(dirty, left.reread(disk.target), disk.size)
    damaged = heal.lost_extents(engine.repository, parent.disk(disk.target))
    known = heal.beside(dirty, leaving.extents(left.before, disk.target), disk.size)
    reason = (
        "its map in the repository is damaged"
        if damaged is None
        else clean_check.suspicion(engine, capture, disk, parent, known, cancel)
    )
    if reason:
        warnings.append(f"{disk.target}: {reason}; the disk was read in full")
        return left.full(disk.target, planning.full_extents(allocated)), reason
    cut = cut_off(engine, capture, disk, parent, known, allocated, cancel)
    if cut.changed:
        warnings.append(
            f"{disk.target}: {cut.bytes} bytes at its end went unnoticed, as when a disk is cut and grown again"
        )
    dirty = cut.beside(dirty)
    if damaged:
        size = sum(extent.length for extent in damaged)
        warnings.append(f"{disk.target}: {size} bytes are damaged in the repository and were read anew")
        dirty = heal.beside(dirty, damaged, disk.size)
    return left.incremental(disk.target, planning.incremental_extents(dirty, allocated)), ""
