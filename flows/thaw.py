"""Bringing a point back from an archive: `thaw_point`.

A run never waits: it asks for the thaw, or looks how far it is, and schedules the next run of its own deployment. So no
process and no slot of a worker is held for hours, and a restart of host, worker or server loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import deployment
from prefect.states import Scheduled

from flows.parameters import ThawPoint
from flows.restore import restore_vm
from tasks import thaw as tasks
from tasks.control import activity
from tasks.restore import restore_wanted
from tasks.running import TaskThreads
from tasks.runrecords import recorded
from tasks.thaw import NOWHERE
from vmcellar.restore.bring_back import Done, Wanted
from vmcellar.restore.thaw_wait import LOOK_SECONDS, Look


@dataclass(frozen=True, slots=True)
class Thawed:
    """What a run came to: what it saw, when the next run is to look (RFC 3339), and the restore once there was one."""

    look: Look
    next_look: str | None
    restored: Done | None


@flow(name="thaw-point", flow_run_name="thaw {request.point}, look {request.looks}")
@recorded
async def thaw_point(request: ThawPoint) -> Thawed:
    """Thaw a point's packs, come back when they should be readable, and restore it where asked for. Green while it
    waits: the next look is another run. Each look writes what can be read by then, and what is written is not thawed
    again, so a thaw that ends too early costs again for what is left alone. With `fetch`, each look copies to hot what
    can be read; while gc runs none is copied, and the next look does it. Costs money.
    """
    wanted = _wanted(request)
    with activity(request.config, request.point) as work, TaskThreads(work.cancel, 1) as threads:
        ask = partial(threads.value, tasks.look, request.config, request.point, wanted, request.speed, request.days)
        seen = await ask()
        next_look = None if seen.again is None else await _look_again(request, seen, seen.again)
        if next_look is not None:
            await threads.value(tasks.pin, request.config, seen.point, _holder(request, seen), True)
        if request.fetch:  # after the next look is scheduled: no failure here ends a thaw that is paid for
            fetched = await threads.value(tasks.fetch, request.config, request.point, request.disks)
            if fetched is None and next_look is None and request.restore is None:
                next_look = await _look_again(request, seen, LOOK_SECONDS)
        if request.restore is not None:
            waiting = await threads.value(tasks.write_readable, request.config, request.point, wanted)
            if waiting.asleep and next_look is None:  # a thaw ended while it was read
                seen = await ask()
                next_look = await _look_again(request, seen, LOOK_SECONDS if seen.again is None else seen.again)
    if next_look is not None:
        return Thawed(seen, next_look, None)
    restored = None if request.restore is None else await restore_vm(request.restore)
    with activity(request.config, request.point) as work, TaskThreads(work.cancel, 1) as threads:
        await threads.value(tasks.pin, request.config, seen.point, _holder(request, seen), False)
    return Thawed(seen, None, restored)


def _wanted(request: ThawPoint) -> Wanted:
    restore = request.restore
    if restore is None:
        return Wanted(NOWHERE, request.format, request.disks, False, None)
    return restore_wanted(restore.directory, restore.format, restore.disks, restore.best_effort, restore.define)


def _holder(request: ThawPoint, seen: Look) -> str:
    """What all looks of one thaw have in common, and those for another restore of the same point do not."""
    same = request.model_copy(update={"point": seen.point, "looks": 0})
    return f"thaw-{sha256(f'{deployment.id} {same.model_dump_json()}'.encode()).hexdigest()}"


async def _look_again(request: ThawPoint, seen: Look, seconds: float) -> str:
    """Schedule the next look, once however often this is called; when it will be."""
    when = datetime.now(UTC) + timedelta(seconds=seconds)
    logger = get_run_logger()
    if deployment.id is None:
        logger.warning(
            "%d packs are not thawed yet; this run has no deployment, so run it again after %s", seen.waiting, when
        )
        return when.isoformat()
    again = request.model_copy(update={"point": seen.point, "looks": request.looks + 1})
    async with get_client() as client:
        await client.create_flow_run_from_deployment(
            UUID(deployment.id),
            parameters={"request": again.model_dump(mode="json")},
            state=Scheduled(scheduled_time=when),
            idempotency_key=f"{_holder(request, seen)}-{seen.requested}-{again.looks}",
        )
    logger.info("%d of %d packs are not thawed; the next look is at %s", seen.waiting, seen.packs, when)
    return when.isoformat()
