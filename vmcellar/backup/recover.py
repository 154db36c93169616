"""recover: settle what dead or failed runs left behind, so that nothing is stuck and nothing is lost.

Runs at the start of every backup and as a command. A backup goes on with a run whose instant is still held by the
hypervisor, or all of which had landed; every other half is removed: its job, scratch files, landing, staged packs, and
its checkpoint, which was never a parent. The command removes those, too, unless it is told to keep them: whoever calls
it wants his VMs let go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from vmcellar.backup import lineage
from vmcellar.backup.cataloguing import note_failed
from vmcellar.backup.commit import point_of
from vmcellar.backup.export import landed_before
from vmcellar.backup.model import BackupRequest, CompressResult, ExportResult, RecoverAction
from vmcellar.backup.release import release
from vmcellar.backup.rundir import COMMITTED, REQUEST_FILE, RunDirectory, stage_file
from vmcellar.backup.runs import RELEASED, Run, RunRecord, load_record
from vmcellar.backup.scratch import PRESSURE_LIMIT
from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.repository import guard
from vmcellar.repository.layout import PINS, point_key, split_pin
from vmcellar.sources.base import Capture
from vmcellar.tiers.base import LockedError

if TYPE_CHECKING:
    from vmcellar.engine import Engine
    from vmcellar.repository.points import RestorePoint

log = logging.getLogger(__name__)

RESUME_SECONDS = 6 * 3600.0
"""An instant older than this is not gone on with: whoever asks for a backup wants a fresh one."""


def settle(engine: Engine, vm: str, request: BackupRequest) -> Run | None:
    """Clear the leftovers of one VM; the run that `request` may go on with, if there is one. Needs
    `engine.vm_lock`.
    """
    kept, _ = _settle(engine, vm, request, keep=True)
    return kept


def recover(engine: Engine, vm: str | None = None, *, resume: bool = False) -> list[RecoverAction]:
    """Clear the leftovers of `vm`, or of all VMs that have any; says what was found and done.

    Every dead run's VM is let go and the run is undone; with `resume` one that the next backup can go on with is kept,
    and its VM held. A VM that another process is backing up right now is left alone. A VM that cannot be settled stops
    no other; the first such error is raised at the end, TransientError while libvirt does not answer.
    """
    actions: list[RecoverAction] = []
    failures: list[VmcellarError] = []
    for name in [vm] if vm else _vms_with_leftovers(engine):
        try:
            actions += _recover_one(engine, name, resume=resume)
        except VmcellarError as error:
            log.warning("%s could not be settled: %s", name, error.message)
            failures.append(error)
    if vm is None:
        actions += _drop_orphans(engine)
    if failures:
        raise failures[0]
    return actions


def _recover_one(engine: Engine, vm: str, *, resume: bool) -> list[RecoverAction]:
    with ExitStack() as stack:
        try:
            stack.enter_context(engine.vm_lock(vm))
        except TransientError as error:
            log.info("%s is left alone: %s", vm, error.message)
            return []
        return _settle(engine, vm, None, keep=resume)[1]


def abandon(engine: Engine, run_id: str, reason: str) -> None:
    """Undo a run that will not be finished: end its job, drop landing, staged packs and directory.

    Packs that were placed already stay as garbage for gc: the tier is never cleaned on a guess. Idempotent.
    """
    log.warning("run %s is abandoned: %s", run_id, reason)
    _clear(engine, run_id)


def _clear(engine: Engine, run_id: str) -> None:
    _drop_work(engine, run_id)
    engine.run_directory(run_id).remove()


def _drop_work(engine: Engine, run_id: str) -> None:
    record = load_record(engine.run_directory(run_id))
    if record is not None:
        _end_job(engine, run_id, record)
    engine.landing.drop_run(run_id)
    engine.drop_staged(run_id)
    engine.forget(run_id)


def let_go(engine: Engine, run_id: str) -> None:
    """End the job of a run that failed, and nothing else; never raises a VmcellarError. `give_up` follows."""
    record = load_record(engine.run_directory(run_id))
    if record is not None:
        _end_job(engine, run_id, record)


def let_vm_go(engine: Engine, vm: str) -> None:
    """End the job of every run of `vm`, and nothing else; needs `engine.vm_lock`. Never raises a VmcellarError.

    For a caller that does not know whether its snapshot began a run. The next backup or `recover` settles the rest.
    """
    for directory in _runs_of(engine, vm):
        let_go(engine, directory.run_id)


def give_up(engine: Engine, run_id: str, error: BaseException) -> None:
    """What becomes of a run that failed while this process lives: the VM is let go in any case.

    When all had landed and the error may pass, the run is kept and the next backup of the VM goes on with it; else
    it is abandoned. Of one whose point was written and could not be taken back, a folder stays until that is settled.
    """
    directory = engine.run_directory(run_id)
    record = load_record(directory)
    if record is not None and isinstance(error, TransientError) and _all_exported(directory, record):
        engine.landing.disown(run_id)
        try:
            release(engine, run_id)
        except (
            VmcellarError
        ) as failed:  # the caller raises the error that counts; who goes on with the run ends the job
            log.warning("%s: run %s: its backup job could not be ended now: %s", record.capture.vm, run_id, failed)
        engine.forget(run_id)
        return
    if record is not None and _may_have_left_a_point(engine, directory, record):
        log.error("%s: run %s: the next backup, or `vmcellar recover`, sees to its point", record.capture.vm, run_id)
        _drop_work(engine, run_id)
        directory.empty()
        return
    abandon(engine, run_id, str(error) or type(error).__name__)


def _may_have_left_a_point(engine: Engine, directory: RunDirectory, record: RunRecord) -> bool:
    """Whether its commit can have begun, and its point is there or nobody can tell."""
    if not all(directory.has(stage_file(s.target, s.number, "verify")) for s in record.segments):
        return False
    try:
        return engine.repository.tier.exists(point_key(point_of(record, directory.run_id)))
    except VmcellarError:
        return True


def _settle(
    engine: Engine, vm: str, request: BackupRequest | None, *, keep: bool
) -> tuple[Run | None, list[RecoverAction]]:
    actions: list[RecoverAction] = []
    kept: Run | None = None
    committed = {point.run_id: point for point in engine.repository.points_of(vm)}
    for directory in _runs_of(engine, vm):
        point = committed.get(directory.run_id)
        taken_back = "" if point is None else _taken_back(engine, directory, point)
        if point is not None and not taken_back:  # it died at its end: a second point would be of an old instant
            _clear(engine, directory.run_id)
            actions.append(RecoverAction(vm, directory.run_id, "abandoned", "its point was written; leftovers cleared"))
            continue
        if taken_back:
            why = f"its point was taken back: {taken_back}"
            actions.append(RecoverAction(vm, directory.run_id, "abandoned", why))
        run = _resumable(engine, directory, request)
        if run is not None and kept is None and keep:
            kept = run
            actions.append(RecoverAction(vm, directory.run_id, "resumable", _why_resumable(run)))
            engine.remember(run)
        else:
            why = _why_abandoned(run, keep=keep)
            _note_died(engine, directory, why)
            abandon(engine, directory.run_id, why)
            actions.append(RecoverAction(vm, directory.run_id, "abandoned", why))
    actions += _reconcile(engine, vm, [kept.directory.run_id] if kept else [])
    return kept, actions


def _taken_back(engine: Engine, directory: RunDirectory, point: RestorePoint) -> str:
    """Take the point of a run back whose commit did not get to its last look, if anything that it needs may go; why, or
    empty: it stays. So does one that is pinned or locked, which is said.
    """
    if directory.has(COMMITTED):
        return ""
    tier = engine.repository.tier
    why = guard.doubt(engine.repository, point)
    if not why:
        return ""
    try:
        if not any(split_pin(key)[0] == point.id for key, _ in tier.list(PINS)):
            guard.withdraw(engine.repository, point.id)
            return why
        kept = "it is pinned"
    except LockedError as error:
        kept = error.message
    log.error("%s: point %s may not restore, and stays because %s: %s", point.vm, point.id, kept, why)
    return ""


def _note_died(engine: Engine, directory: RunDirectory, why: str) -> None:
    record = load_record(directory)
    if record is not None:
        note_failed(engine, record.request, record.started, "died", f"its process died, or was stopped: {why}")


def _reconcile(engine: Engine, vm: str, live: list[str]) -> list[RecoverAction]:
    kept = [record.name for record in lineage.kept(engine.config, vm, engine.repository.points_of(vm))]
    found = engine.source.reconcile(vm, engine.repository.id.hex(), kept, live)
    return [RecoverAction(vm, item.run_id, item.action, item.detail) for item in found]


def _resumable(engine: Engine, directory: RunDirectory, request: BackupRequest | None) -> Run | None:
    record = load_record(directory)
    if record is None or not _wanted(record, request):
        return None
    released = directory.has(RELEASED)
    capture = None if released else _reattach(engine, record)
    exported = _all_exported(directory, record)
    if (not exported and (capture is None or _is_pressed(capture))) or not _reads_back(engine, directory, record):
        return None
    try:
        run = Run(directory, record, capture)
        return run if capture is not None or _all_landed(engine, run) else None
    except PermanentError as error:  # damaged hand-overs: they must not stop every later backup of the VM, too
        log.warning("%s: run %s cannot be gone on with: %s", record.capture.vm, directory.run_id, error.message)
        return None


def _wanted(record: RunRecord, request: BackupRequest | None) -> bool:
    """Whether a request may be answered by this run: the same question, asked not long ago."""
    fresh = time.time() - record.started < RESUME_SECONDS
    return fresh and (request is None or replace(record.request, key=request.key, job=request.job) == request)


def _reads_back(engine: Engine, directory: RunDirectory, record: RunRecord) -> bool:
    """Whether this process opens the packs that wait for `verify`: in recipient mode only the one that sealed them."""
    for segment in record.segments:
        if directory.has(stage_file(segment.target, segment.number, "verify")):
            continue
        name = stage_file(segment.target, segment.number, "compress")
        done = directory.load(name, CompressResult) or directory.load(
            name.replace(".compress.", ".export."), ExportResult
        )
        if done is not None and any(not engine.opens(pack) for pack in done.packs):
            return False
    return True


def _is_pressed(capture: Capture) -> bool:
    """Whether the guest is near write errors because nobody read on: reading the rest would fail at once."""
    try:
        return capture.scratch_pressure().fraction > PRESSURE_LIMIT
    except VmcellarError:  # its scratch folder is gone
        return True


def _reattach(engine: Engine, record: RunRecord) -> Capture | None:
    """The capture if it is still held. TransientError while that cannot be told: nothing is settled on a guess."""
    try:
        return engine.source.reattach(record.capture)
    except PermanentError as error:
        log.warning("%s: the instant of run %s cannot be found: %s", record.capture.vm, record.capture.run_id, error)
        return None


def _all_exported(directory: RunDirectory, record: RunRecord) -> bool:
    return all(directory.has(stage_file(s.target, s.number, "export")) for s in record.segments)


def _all_landed(engine: Engine, run: Run) -> bool:
    return all(landed_before(engine, run.directory, s.target, s.number) is not None for s in run.record.segments)


def _why_resumable(run: Run) -> str:
    return "its instant is still held" if run.held else "all of it had landed"


def _why_abandoned(run: Run | None, *, keep: bool) -> str:
    if run is None:
        return "not enough of it had landed, it is old, or a newer request differs"
    return "a newer run is gone on with" if keep else "its VM is let go; --resume would have kept it"


def _end_job(engine: Engine, run_id: str, record: RunRecord) -> None:
    try:
        known = engine.known_run(run_id)
        capture = known.capture if known and known.held else engine.source.reattach(record.capture)
        if capture is not None:
            capture.end()
    except VmcellarError as error:
        log.warning("%s: run %s: its backup job could not be ended now: %s", record.capture.vm, run_id, error)


def _runs_of(engine: Engine, vm: str) -> list[RunDirectory]:
    return [d for d in engine.run_directories() if _vm_of(d) == vm]


def _vm_of(directory: RunDirectory) -> str | None:
    request = directory.load(REQUEST_FILE, BackupRequest)
    return request.vm if request else None


def _vms_with_leftovers(engine: Engine) -> Iterable[str]:
    found = {_vm_of(d) for d in engine.run_directories()} | {p.vm for p in engine.repository.readable_points()}
    found |= engine.source.left_behind(engine.repository.id.hex())  # a job may outlive its run's directory
    return sorted(vm for vm in found if vm is not None)


def _drop_orphans(engine: Engine) -> list[RecoverAction]:
    """Landings and staged packs whose run directory is gone, and run directories that never began."""
    for directory in engine.run_directories():
        if directory.is_nobodys():
            directory.remove()
    found = {*engine.landing.runs(), *engine.staged_runs()}
    known = {d.run_id for d in engine.run_directories()}  # looked at second: a run makes its directory first
    orphans = sorted(found - known)
    for run_id in orphans:
        engine.landing.drop_run(run_id)
        engine.drop_staged(run_id)
    return [RecoverAction("", run_id, "abandoned", "landing or staged packs without a run") for run_id in orphans]
