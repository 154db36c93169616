"""Backing up: `backup_vm` is the DAG of one VM, `backup_job` runs several of them.

    snapshot -> export (per disk and segment) -> release -> ... -> commit
                   `-> compress -> place -> verify -'

Release waits for the exports alone, so the VM is let go before the packs are made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from prefect import flow, get_run_logger
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters import BackupJob, BackupVm
from tasks import backup as tasks
from tasks.artifacts import progress_artifact, report_artifact
from tasks.control import activity, controls, engine_of
from tasks.waiting import stop_others_on_failure, wait_for_all
from vmcellar.backup import stages
from vmcellar.backup.model import BackupRequest, PointSummary, RunHandle
from vmcellar.backup.selection import job_requests
from vmcellar.errors import PermanentError

WINDOW = 16
"""Segments whose tasks are submitted at once. A submitted task that waits for its upstream holds a thread, and exports
wait for room in the landing zone, which compress makes: so all tasks of a window need a thread each."""
WORKERS = 4 * WINDOW + 4


@flow(
    name="backup-vm",
    flow_run_name="backup {request.vm} {request.mode}",
    task_runner=ThreadPoolTaskRunner(max_workers=WORKERS),  # type: ignore[arg-type]  # its stub pins the future's type
)
async def backup_vm(request: BackupVm) -> PointSummary:
    """Back up one VM; fails, with what to do, unless a verified restore point of every covered disk came of it."""
    engine = engine_of(request.config)
    with engine.vm_lock(request.vm):
        handle = tasks.snapshot(request.config, _request(request))
        total = sum(segment.bytes for segment in handle.segments)
        with activity(handle.run_id, total) as work:
            try:
                if handle.segments:
                    with progress_artifact(request.vm, work):
                        await _segments(request.config, handle)
                else:
                    tasks.release(request.config, handle.run_id, request.vm)
                point = tasks.commit(request.config, handle.run_id, request.vm)
            except BaseException as error:
                stages.give_up(engine, handle.run_id, error)
                raise
    await report_artifact(point)
    return _covered(point)


@flow(name="backup-job", flow_run_name="backup job {request.job}")
async def backup_job(request: BackupJob) -> list[PointSummary]:
    """Back up several VMs, some at once. One VM's failure does not stop the others, but the job is red then."""
    config = engine_of(request.config).config
    requests = job_requests(config, request.vms, request.job, full=request.full)
    gate = asyncio.Semaphore(request.at_once or config.limits.vms)

    async def one(wanted: BackupRequest) -> PointSummary:
        async with gate:
            return await backup_vm(_parameters(request.config, wanted))

    results = await asyncio.gather(*(one(wanted) for wanted in requests), return_exceptions=True)
    return _all_green([wanted.vm for wanted in requests], results)


async def _segments(config: str, handle: RunHandle) -> None:
    """Submit the segments' tasks, some ahead, and wait for all; on a failure or a stop the others are asked to end."""
    repository = engine_of(config).repository.id.hex()
    _, cancel = controls(handle.run_id)
    exports: list[PrefectFuture[Any]] = []
    rest: list[PrefectFuture[Any]] = []
    try:
        for number, segment in enumerate(handle.segments):
            if number >= WINDOW:
                await asyncio.to_thread(rest[3 * (number - WINDOW) + 2].wait)
            if cancel.cancelled:
                break
            part = tasks.part_of(config, handle, repository, segment.target, segment.number)
            exports.append(stop_others_on_failure(_export(part), cancel))
            for stage in (tasks.compress, tasks.place, tasks.verify):
                upstream = exports[-1] if stage is tasks.compress else rest[-1]
                submitted = stage.submit(part, return_state=False, wait_for=[upstream])
                rest.append(stop_others_on_failure(submitted, cancel))
        release = tasks.release.submit(config, handle.run_id, handle.vm, return_state=False, wait_for=exports)
        rest.append(release)
    finally:
        await wait_for_all([*exports, *rest], cancel)


def _export(part: dict[str, Any]) -> PrefectFuture[dict[str, Any]]:
    task = tasks.export if tasks.export_stands(part) else tasks.export.with_options(refresh_cache=True)
    return task.submit(part)


def _request(request: BackupVm) -> BackupRequest:
    return BackupRequest(
        request.vm,
        request.mode,
        request.job,
        exclude_disks=request.exclude_disks,
        compression=request.compression,
    )


def _parameters(config: str, wanted: BackupRequest) -> BackupVm:
    return BackupVm(
        config=config,
        vm=wanted.vm,
        mode=wanted.mode,
        job=wanted.job,
        exclude_disks=wanted.exclude_disks,
        compression=wanted.compression,
    )


def _covered(point: PointSummary) -> PointSummary:
    """The point, unless a disk is in no point and no policy says that it may be (pitfalls 13 and 30)."""
    if point.uncovered:
        raise PermanentError(
            f"{point.vm}: point {point.id} is committed, but does not hold every disk: {'; '.join(point.uncovered)}",
            hint="exclude these disks by name (exclude: disk:TARGET) when that is meant",
        )
    return point


def _all_green(vms: Sequence[str], results: Sequence[PointSummary | BaseException]) -> list[PointSummary]:
    failed = {vm: r for vm, r in zip(vms, results, strict=True) if isinstance(r, BaseException)}
    for vm, error in failed.items():
        get_run_logger().error("%s has no new verified point: %s", vm, error)
    if failed:
        first = next(iter(failed.values()))
        if len(failed) == 1 or not isinstance(first, Exception):
            raise first
        raise PermanentError(
            f"{len(failed)} of {len(vms)} VMs have no new verified point: "
            + "; ".join(f"{vm}: {getattr(error, 'message', error)}" for vm, error in failed.items()),
            hint="each VM's own run tells what to do",
        )
    return [result for result in results if isinstance(result, PointSummary)]
