"""Flow runs of this host that no process works on and that have no record: their process died before its flow began.

`tasks.runrecords` settles what has a record. A run gets its record when its flow begins; one whose worker or process
died before that would stay `Pending` or `Running` for ever.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

from prefect import State, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed

from tasks.timetable import PREFIX, SERVED

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

log = logging.getLogger(__name__)

SETTLED_AFTER = timedelta(minutes=10)
"""A worker needs seconds from `Pending` to a process, and its requests to the server are tried for two minutes."""

PAGE = 200
GONE = "no process of its host works on it: it ended before its flow began, or the host went down"
_OPEN = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


async def settle_unbegun(recorded: Iterable[str], proc: Path = Path("/proc")) -> list[FlowRun]:
    """Tell the server of this host's runs that nobody works on; those that were told.

    To be called in a run of a deployment: its tag names the host, and only runs with that tag are looked at. Of those,
    only ones that have been in their state for `SETTLED_AFTER`, are not among `recorded` (the ids of runs whose record
    is held) and whose id is in the environment of no process. A worker puts it there for each process of a run;
    `deployments.serve` does not, so where the run of the caller itself is not seen there, only runs whose flow has not
    begun are judged. A worker in a container must not share its queue with one outside of it. Raises what Prefect's
    client raises.
    """
    context = FlowRunContext.get()
    own = context.flow_run if context else None
    place = _place(own)
    if own is None or place is None:
        return []
    told, seen, known = [], at_work(proc), {*recorded}
    async with get_client() as client:
        for run in await _open_runs(client, place):
            if run.id in seen or str(run.id) in known or not is_stale(run.state, datetime.now(UTC)):
                continue
            if run.start_time is not None and own.id not in seen:
                continue
            now = await client.read_flow_run(run.id)
            if now.state is not None and run.state is not None and now.state.id == run.state.id:
                await client.set_flow_run_state(run.id, _end_of(now.state))
                log.warning("flow run %s: %s", run.id, GONE)
                told.append(run)
    return told


def is_stale(state: State[Any] | None, now: datetime) -> bool:
    """Whether a run has been in a state that ought to pass for so long that its process, if any, is to be seen."""
    return state is not None and state.type in _OPEN and now - state.timestamp > SETTLED_AFTER


def at_work(proc: Path) -> set[UUID]:
    """The ids of flow runs that some process of this host was started for, as far as this user may see them."""
    found = set()
    for environment in proc.glob("[0-9]*/environ"):
        try:
            names = environment.read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        for name in names:
            if name.startswith(b"PREFECT__FLOW_RUN_ID="):
                try:
                    found.add(UUID(name.partition(b"=")[2].decode()))
                except ValueError:
                    continue
    return found


def is_of_this_host_alone(place: str, url: str) -> bool:
    """Whether runs with the tag `place` can only have been on this host: several may serve as `here` on one server."""
    if place != f"{PREFIX}-{SERVED}":
        return True
    name = urlsplit(url).hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _place(run: FlowRun | None) -> str | None:
    if run is None or run.deployment_id is None:
        return None
    places = [tag for tag in run.tags if tag.startswith(f"{PREFIX}-")]
    if len(places) != 1 or not is_of_this_host_alone(places[0], PREFECT_API_URL.value() or ""):
        return None
    return places[0]


async def _open_runs(client: PrefectClient, place: str) -> list[FlowRun]:
    found: list[FlowRun] = []
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[place]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*_OPEN])),
    )
    while page := await client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=len(found)):
        found += page
    return [run for run in found if run.deployment_id is not None]


def _end_of(state: State[Any]) -> State[Any]:
    return Cancelled(message=GONE) if state.type == StateType.CANCELLING else Crashed(message=GONE)
