"""Backing up: `backup_vm` is the DAG of one VM, `backup_job` runs several of them.

    snapshot -> export (per disk and segment) -> release -> ... -> commit
                   `-> compress -> place -> verify -'

Release waits for the exports alone, so the VM is let go before the packs are made.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from prefect import State, flow, get_run_logger
from prefect.states import Cancelled

from flows.parameters import BackupJob, BackupVm
from tasks import backup as tasks
from tasks.artifacts import job_artifact, progress_artifact, report_artifact
from tasks.control import Activity, activity, engine_of
from tasks.failures import told_of
from tasks.hooks import hooked, run_hooks
from tasks.lost import or_without
from tasks.pages import Result
from tasks.places import host_slot
from tasks.running import TaskThreads
from tasks.runrecords import recorded
from tasks.turns import Turns, superseded
from vmcellar.backup import stages
from vmcellar.backup.at_work import at_work
from vmcellar.backup.cataloguing import note_failed, noting_failure
from vmcellar.backup.hooks import Hooks
from vmcellar.backup.model import BackupRequest, PointSummary, RunHandle, from_json
from vmcellar.backup.selection import Selection, select, standing_of
from vmcellar.config.model import Config
from vmcellar.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmcellar.engine import Engine

READING = 2
"""Segments that are being read: one more than keeps a disk's connections busy, so that none waits for Prefect."""
PACKING = 3
"""Segments that are compressed, placed and verified at once; their CPU work shares the engine's one pool."""


@flow(name="backup-vm", flow_run_name="backup {request.vm} {request.mode}")
@recorded
async def backup_vm(request: BackupVm) -> PointSummary:
    """Back up one VM; fails, with what to do, unless a verified restore point of every covered disk came of it."""
    config, vm = request.config, request.vm
    engine = engine_of(config)
    with (
        noting_failure(engine, _request(request)),
        activity(config, vm) as work,
        at_work(engine, _request(request)),
        TaskThreads(work.cancel, READING + PACKING + 1) as threads,
    ):
        async with hooked(engine, _request(request), work) as hooks:
            work.point = await _backed_up(request, work, threads, hooks)
        work.point = hooks.on(work.point)
    await report_artifact(work.point)
    return _covered(work.point)


async def _backed_up(request: BackupVm, work: Activity, threads: TaskThreads, hooks: Hooks) -> PointSummary:
    """The DAG itself: the tasks from snapshot to commit."""
    config, vm = request.config, request.vm
    engine = engine_of(config)
    try:
        held = await threads.run(tasks.snapshot, config, _request(request))
        handle = from_json(RunHandle, (await held.aresult()).encode())
    except BaseException:  # perhaps Prefect's own, when the stage holds the VM already
        stages.let_vm_go(engine, vm)
        raise
    try:
        await run_hooks(hooks, partial(hooks.thawed, engine.run(handle.run_id).check_pressure))
        async with progress_artifact(vm, work):
            done = await _Segments(threads, config, handle, held).run(work)
        return await threads.value(tasks.commit, config, handle.run_id, vm, after=done)
    except BaseException as error:
        stages.give_up(engine, handle.run_id, error)
        raise


@flow(name="backup-job", flow_run_name="backup {request.what}")
@recorded
async def backup_job(request: BackupJob) -> list[PointSummary]:
    """Back up several VMs, some at once. One VM's failure does not stop the others, but the job is red then.

    So it is with a VM of the job that is off and has no verified point at all, and with one whose turn did not come
    within the window. A scheduled run outside of its window, one whose work another does, or one whose VMs the job
    selects no more, is `Skipped`.
    """
    engine = engine_of(request.config)
    turns = Turns(engine.config.job(request.job), spread=not request.vms) if request.scheduled else None
    skipped = turns and (turns.closed or await superseded(engine.state))
    if skipped:
        return cast("list[PointSummary]", Cancelled(name="Skipped", message=skipped))  # a state that is returned holds
    with told_of(engine.state, f"job {request.job}") if request.scheduled else nullcontext():
        selection = selected(engine.config, request)
    if request.vms and not (selection.requests or selection.off):
        gone = f"job {request.job}: it selects none of {', '.join(request.vms)} on this host by now"
        return cast("list[PointSummary]", Cancelled(name="Skipped", message=gone))
    gate = asyncio.Semaphore(request.at_once or engine.config.limits.vms)

    async def one(wanted: BackupRequest) -> PointSummary:
        if turns:
            await turns.wait(wanted.vm)
        async with gate, host_slot(engine.config.limits, engine.state):
            if turns is None:
                return await _one(request.config, wanted)
            await _begun_in_time(turns, engine, wanted)
            async with turns.until_closed(request.config, wanted.vm):
                return await _one(request.config, wanted)

    results = await asyncio.gather(*(one(wanted) for wanted in selection.requests), return_exceptions=True)
    by_vm: dict[str, Result] = dict(zip((wanted.vm for wanted in selection.requests), results, strict=True))
    by_vm.update(await _off(engine, request.job, selection.off))
    if request.job or len(by_vm) > 1:
        await job_artifact(request.job, by_vm)
    return _all_green(by_vm)


def selected(config: Config, request: BackupJob) -> Selection:
    """What a run of a job backs up. A schedule that was advised names its VMs as they were then: of these it is what
    the job selects on this host now, so that one which is off, gone, or left out since is treated as the job has it.
    """
    options = {"full": request.full, "start_paused": request.start_paused, "keep_paths": request.keep_paths}
    if request.scheduled and request.job and request.vms:
        return select(config, (), request.job, **options).only(request.vms)
    chosen = select(config, request.vms, request.job, **options)
    return chosen.without(request.except_vms)


async def _begun_in_time(turns: Turns, engine: Engine, wanted: BackupRequest) -> None:
    """The catalog knows of a VM whose turn did not come, as people are told by it."""
    try:
        turns.check(wanted.vm)
    except PermanentError as error:
        await asyncio.to_thread(note_failed, engine, wanted, time.time(), "failed", error)
        raise


async def _off(engine: Engine, job: str, off: Sequence[str]) -> dict[str, Result]:
    """VMs that are off; the catalog knows of those that have no point at all."""
    found = standing_of(engine.repository, job, off)
    for vm, state in found.items():
        if isinstance(state, PermanentError):
            await asyncio.to_thread(note_failed, engine, BackupRequest(vm, job=job), time.time(), "failed", state)
    return dict(found)


async def _one(config: str, wanted: BackupRequest) -> PointSummary:
    return _covered(await or_without(config, wanted, backup_vm(_parameters(config, wanted))))


class _Segments:
    """The middle of the DAG: every segment's chain of tasks, and the release between them."""

    def __init__(self, threads: TaskThreads, config: str, handle: RunHandle, held: State[Any]) -> None:
        self._threads = threads
        self._config = config
        self._handle = handle
        self._held = held
        self._reading = asyncio.Semaphore(READING)
        self._packing = asyncio.Semaphore(PACKING)

    async def run(self, work: Activity) -> list[State[Any]]:
        """Do all; the last states of the chains and of the release, which commit comes after."""
        parts = tasks.parts_of(self._config, self._handle)
        anew = [tasks.export_again(part) for part in parts]
        sizes = [segment.bytes for segment in self._handle.segments]
        work.begin(sum(size for size, again in zip(sizes, anew, strict=True) if again))
        exports = [asyncio.create_task(self._export(part, again)) for part, again in zip(parts, anew, strict=True)]
        packs = [self._pack(part, export) for part, export in zip(parts, exports, strict=True)]
        try:
            return await self._threads.all([self._release(exports), *packs])
        finally:
            for export in exports:  # of a run that was stopped before its release began to wait for them
                export.cancel()
            await asyncio.gather(*exports, return_exceptions=True)

    async def _export(self, part: dict[str, Any], again: bool) -> State[Any]:
        async with self._reading:
            return await self._threads.run(tasks.export_anew if again else tasks.export, part, after=[self._held])

    async def _release(self, exports: list[asyncio.Task[State[Any]]]) -> State[Any]:
        landed = await self._threads.all(exports) or [self._held]
        return await self._threads.run(tasks.release, self._config, self._handle.run_id, self._handle.vm, after=landed)

    async def _pack(self, part: dict[str, Any], export: asyncio.Task[State[Any]]) -> State[Any]:
        state = await asyncio.shield(export)  # release waits for it too, so it is not ours to cancel
        async with self._packing:
            for stage in (tasks.compress, tasks.place, tasks.verify):
                state = await self._threads.run(stage, part, after=[state])
        return state


def _request(request: BackupVm) -> BackupRequest:
    return BackupRequest(
        request.vm,
        request.mode,
        request.job,
        exclude_disks=request.exclude_disks,
        exclude_paths=request.exclude_paths,
        compression=request.compression,
        chunks=request.chunks,
        start_paused=request.start_paused,
    )


def _parameters(config: str, wanted: BackupRequest) -> BackupVm:
    return BackupVm(
        config=config,
        vm=wanted.vm,
        mode=wanted.mode,
        job=wanted.job,
        exclude_disks=wanted.exclude_disks,
        exclude_paths=wanted.exclude_paths,
        compression=wanted.compression,
        chunks=wanted.chunks,
        start_paused=wanted.start_paused,
    )


def _covered(point: PointSummary) -> PointSummary:
    """The point, unless a hook failed, or a disk is in no point and no policy says that it may be (pitfalls 13, 30)."""
    if point.uncovered:
        raise PermanentError(
            f"{point.vm}: point {point.id} is committed, but does not hold every disk: {'; '.join(point.uncovered)}",
            hint="exclude these disks by name (exclude: disk:TARGET) when that is meant",
        )
    if point.hook_failures:
        raise PermanentError(
            f"{point.vm}: point {point.id} is committed, but {'; '.join(point.hook_failures)}",
            hint="what the command was to do is not done: do it by hand, then mend it",
        )
    return point


def _all_green(results: dict[str, Result]) -> list[PointSummary]:
    """All points; raises the error of the VM that has none, or one that names all such VMs (pitfall 30)."""
    failed = {vm: result for vm, result in results.items() if isinstance(result, BaseException)}
    for vm, error in failed.items():
        get_run_logger().error("%s has no new verified point: %s", vm, error)
    stops = [error for error in failed.values() if not isinstance(error, Exception)]
    if stops or len(failed) == 1:
        raise [*stops, *failed.values()][0]
    if failed:
        raise PermanentError(
            f"{len(failed)} of {len(results)} VMs have no new verified point: "
            + "; ".join(_named(vm, error) for vm, error in failed.items()),
            hint="each VM's own run tells what to do",
        )
    return [result for result in results.values() if isinstance(result, PointSummary)]


def _named(vm: str, error: BaseException) -> str:
    """Our own errors begin with the VM's name, others have to be given it."""
    text = str(getattr(error, "message", error)) or type(error).__name__
    return text if text.startswith(f"{vm}:") else f"{vm}: {text}"
