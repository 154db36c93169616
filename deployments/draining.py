"""`vmcellar drain`: a host takes no new work, what runs on it ends, then it may go down.

A host with a worker has its queue paused: what comes due meanwhile waits there. A host that serves its flows by
itself has its deployments paused: what comes due meanwhile is not made, and a run that somebody starts by hand is still
taken. What was paused is kept in `<state>/drained.json`, so that the end undoes nothing that somebody paused in the UI.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from deployments.drained import FILE, Drained, read, write
from deployments.registration import deployed
from deployments.wanted import TAG
from tasks.runrecords import living
from tasks.timetable import SERVED
from tasks.unbegun import at_work
from vmcellar.errors import PermanentError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_STARTING = timedelta(minutes=1)
"""A pending run without a process is one that is being started, until it is this old."""


async def pause(state: Path, host: str) -> Drained:
    """Pause the queue of the host's worker, or, where it has none, the deployments that it serves. May be repeated.

    PermanentError where the server has neither: whoever then took the host for drained would be wrong.
    """
    where = host if await deployed(host) else SERVED
    found = (await deployed(where)).values()
    if not found:
        raise PermanentError(
            f"the Prefect server has no deployments of {host}, and none that `vmcellar up` serves: nothing was paused",
            hint="give --host as to `vmcellar deploy`; `vmcellar locks` shows which VMs are being worked on here",
        )
    done = read(state) or Drained(where)
    queues = {each.work_queue_id for each in found if each.work_queue_id is not None}
    served = [each.id for each in found if each.work_queue_id is None and not each.paused]
    async with get_client() as client:
        open_queues = [queue for queue in queues if not (await client.read_work_queue(queue)).is_paused]
        done = Drained(where, [*done.deployments, *served], [*done.queues, *open_queues])
        write(state, done)  # first: what a kill leaves half paused is undone as a whole
        for queue in open_queues:
            await client.update_work_queue(queue, is_paused=True)
        for deployment in served:
            await client.pause_deployment(deployment)
    return done


async def resume(state: Path) -> Drained | None:
    """Undo it; None when nothing was paused."""
    done = read(state)
    if done is None:
        return None
    async with get_client() as client:
        for queue in done.queues:
            with suppress(ObjectNotFound):
                await client.update_work_queue(queue, is_paused=False)
        for deployment in done.deployments:
            with suppress(ObjectNotFound):
                await client.resume_deployment(deployment)
    (state / FILE).unlink()
    return done


async def running(where: str, state: Path) -> list[str]:
    """The flow runs of a place that go on in a process of this host, or are being started; by name.

    A run whose process was killed stays Running on the server, perhaps for ever: the kernel says which live, by the
    records in `state`, and by processes' environments where a worker began a run whose flow has not yet begun.
    """
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[f"{TAG}-{where}"]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ALIVE)),
    )
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_run_filter=wanted)
    alive = living(state) | {str(each) for each in at_work(Path("/proc"))}
    return [run.name for run in runs if str(run.id) in alive or _starting(run)]


_ALIVE = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def _starting(run: FlowRun) -> bool:
    state = run.state
    return state is not None and state.type == StateType.PENDING and datetime.now(UTC) - state.timestamp < _STARTING
