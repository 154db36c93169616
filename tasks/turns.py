"""When a scheduled run of a job, and each of its VMs, may begin: windows, spread starts, catching up after an outage.

A run that somebody started by hand waits for nothing but the host's limit (`tasks.places`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext

from tasks import runrecords
from tasks.control import stop_reading
from vmcellar.errors import PermanentError, VmcellarError
from vmcellar.policy.localzone import local_zone
from vmcellar.policy.windows import delay, seconds_left

if TYPE_CHECKING:
    from pathlib import Path

    from vmcellar.config.jobs import BackupJob
    from vmcellar.config.units import Window

Clock = Callable[[], datetime]

EARLY = 60
"""Seconds that a run may begin before its window: hosts' clocks differ, and a night's backup must not be skipped."""


def now() -> datetime:
    """The time of this host, in its zone."""
    return datetime.now(UTC).astimezone(local_zone())


def _begun(window: Window | None, moment: datetime) -> datetime:
    """When a run that began at `moment` counts as begun: where its window opens within `EARLY` seconds, at its opening,
    as the clocks of its host and of the server that began it may differ.
    """
    if seconds_left(window, moment) == 0:
        for early in range(1, EARLY + 1):
            later = moment.replace(microsecond=0) + timedelta(seconds=early)
            if seconds_left(window, later):
                return later
    return moment


class Turns:
    """The VMs of one run of a job, each of which waits for its turn."""

    def __init__(self, job: BackupJob, clock: Clock = now, *, spread: bool = True) -> None:
        """Without `spread` no VM waits: its start was chosen for it alone, as an advised one is."""
        self._job = job
        self._spread = (job.spread or 0) if spread else 0
        self._clock = clock
        self._begun = _begun(job.window, clock())
        self._left = seconds_left(job.window, self._begun)

    @property
    def closed(self) -> str:
        """Why the run must not begin at all; empty when it may."""
        if self._left != 0 or self._job.window is None:
            return ""
        return f"job {self._job.name}: {self._begun:%H:%M} is outside its window {self._job.window}"

    async def wait(self, vm: str) -> None:
        """Return when the window is open, and the VM's own time within `spread:` has come."""
        due = delay(vm, min(self._spread, self._left or float("inf")))
        await asyncio.sleep(max(0.0, due - (self._clock() - self._begun).total_seconds()))

    def check(self, vm: str) -> None:
        """PermanentError when the window ended before the VM's turn came."""
        if seconds_left(self._job.window, self._clock()) == 0:
            raise PermanentError(
                f"{vm}: not begun: the window {self._job.window} of job {self._job.name} ended before its turn",
                hint="the next run backs it up; widen `window:`, raise `limits.vms`, or back it up by hand now",
            )

    @asynccontextmanager
    async def until_closed(self, config: str, vm: str) -> AsyncIterator[None]:
        """Ask the VM's backup in the block to stop when the window ends and it still reads, if the job wants that.

        PermanentError then. What has read all by then goes on: the VM is let go already, and its point is near.
        """
        if self._job.after_window != "stop":
            yield
            return
        watcher = asyncio.create_task(self._stop_at_end(config, vm))
        try:
            yield
        except VmcellarError as error:
            if watcher.done() and watcher.result():
                raise PermanentError(
                    f"{vm}: stopped while it was read: the window {self._job.window} of job {self._job.name} ended",
                    hint="the next run begins anew; widen `window:`, or give `after_window:` a rate to go on with",
                ) from error
            raise
        finally:
            watcher.cancel()

    async def _stop_at_end(self, config: str, vm: str) -> bool:
        while left := seconds_left(self._job.window, self._clock()):
            await asyncio.sleep(left)
        return stop_reading(config, vm)


async def superseded(state: Path) -> str:
    """Why this scheduled run leaves its turn to another run of the same schedule; empty when it does not.

    After an outage all runs that came due meanwhile begin at once; only the newest of them works. A run that the server
    takes for running, though no process of this host (by the records in `state`) works on it, holds nobody up.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None or run.expected_start_time is None:
        return ""
    moment = datetime.now(UTC)
    async with get_client() as client:
        others = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ALIVE)),
                expected_start_time=FlowRunFilterExpectedStartTime.model_validate(
                    {"before_": moment}
                ),  # not those to come, of all VMs
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
    alive = runrecords.living(state)
    same = [
        other
        for other in others
        if other.id != run.id
        and _is_same_work(run, other)
        and (other.state_type != StateType.RUNNING or str(other.id) in alive)
    ]
    return _why(run, same, moment)


def _is_same_work(run: FlowRun, other: FlowRun) -> bool:
    """Of one schedule, or both of one whole job: whatever VMs of it were left to other schedules since."""
    whole = _whole_job(run)
    return other.parameters == run.parameters or (whole != "" and whole == _whole_job(other))


def _whole_job(run: FlowRun) -> str:
    """The job that a scheduled run does all of, but for VMs that have a schedule of their own; empty for others."""
    request = run.parameters.get("request", {})
    if not request.get("scheduled") or request.get("vms"):
        return ""
    return str(request.get("job", ""))


_ALIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


def _why(run: FlowRun, others: list[FlowRun], moment: datetime) -> str:
    due = run.expected_start_time
    if due is None:
        return ""
    for other in others:
        if other.expected_start_time is None:
            continue
        if due < other.expected_start_time <= moment:
            return f"run {other.name}, due later, does the work of this one"
        if other.start_time is not None and other.start_time < due and other.state_type == StateType.RUNNING:
            return f"run {other.name}, begun before this one was due, still goes on"
    return ""
