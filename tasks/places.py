"""The places that all jobs of a host share, and those that several hosts share: global concurrency limits of Prefect's.

Who waits for one does not leave it to Prefect, which asks again after some seconds that the server chooses, and for one
VM of a process at a time: places stood empty meanwhile, so that jobs of short backups waited longer than they worked.
Here one process of the host looks at a time, for as long as it moves, and again as soon as a place was given back on
this host; it asks once there is one.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound

from tasks import leases
from tasks.patience import server_is_lost

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

    from vmcellar.config.model import Limits

log = logging.getLogger(__name__)

LOST_SECONDS = 0.1
"""How long the answer of a server that is known to be lost is waited for."""

ASK_SECONDS = 5.0
"""Who waits looks again after so long at the latest: nobody tells of a place that another host gave back
(`limits.shared`), or whose holder was killed."""

TURN_SECONDS = 60.0
"""Who waits behind another process of the host for so long looks by itself: that one may be stopped, or hang."""

LOOK_SECONDS = 0.03
LOOKS_PER_SERVER_LOOK = 33
FILE = "places"


def host_limit() -> str:
    """The name of the global concurrency limit that all jobs of this host share."""
    return f"vmcellar-{socket.gethostname()}"


def shared_limits(limits: Limits) -> dict[str, int]:
    """The global concurrency limits of what several hosts share, by their names on the server."""
    return {f"vmcellar-shared-{name}": places for name, places in limits.shared.items()}


@asynccontextmanager
async def host_slot(limits: Limits, state: Path) -> AsyncIterator[None]:
    """One of the places that `limits.vms` gives the jobs of this host together, and one of each of `limits.shared`, for
    runs that a deployment began. All are taken at once or none, so no run holds one while it waits for another.

    `vmcellar up` and `vmcellar deploy` make the limits. A server that does not answer must not keep a backup from
    running, nor undo it at its end: it then goes without a place. `state` is the host's state directory.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        yield
        return
    async with AsyncExitStack() as stack:
        place = await _place(stack, [host_limit(), *shared_limits(limits)], state / FILE)
        try:
            yield
        finally:
            if place is not None:
                await _give_back(*place)
                _tell(state / FILE)


async def _place(stack: AsyncExitStack, names: list[str], file: Path) -> tuple[PrefectClient, UUID] | None:
    """All of these places, once they are free together, kept until `stack` ends, and the client to give them back by;
    None where the server does not answer.

    Who waits holds a lock on `file`, whose time tells when a place was given back; the kernel drops it at a kill.
    """
    try:
        client = await stack.enter_async_context(leases.leasing())
        with _opened(file) as handle:
            await _turn(handle)
            lease = await _taken(client, names, handle)
    except Exception as error:
        _warn(error)
        return None
    if lease is None:
        log.warning("the Prefect server does not answer: going on without a place of %s", host_limit())
        return None
    await stack.enter_async_context(leases.kept(client, lease))
    return client, lease


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    """The file's descriptor; the lock goes with the block, also where a process that was forked meanwhile has both."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


async def _turn(handle: int) -> None:
    """Return when no other process of the host looks for a place, when one stood in the way for too long, or when the
    server is lost.
    """
    for look in range(1, 1 + round(TURN_SECONDS / LOOK_SECONDS)):
        if _locked(handle) or (look % LOOKS_PER_SERVER_LOOK == 0 and await server_is_lost()):
            return
        await asyncio.sleep(LOOK_SECONDS)


async def _taken(client: PrefectClient, names: list[str], handle: int) -> UUID | None:
    """The lease, once each limit has a free place; None where the server is lost: it is not asked then, as a place that
    it gave late would be nobody's for a minute.
    """
    while not await server_is_lost():
        changed = os.fstat(handle).st_mtime_ns
        free = all([await _is_free(client, name) for name in names])
        lease = await leases.take(client, names) if free else None
        if lease is not None:
            return lease
        await _until_given_back(handle, changed)
    return None


async def _is_free(client: PrefectClient, name: str) -> bool:
    """A limit that is not there, or was switched off, holds nobody up."""
    try:
        limit = await client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        return True
    return not limit.active or limit.active_slots < limit.limit


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _until_given_back(handle: int, changed: int) -> None:
    for _ in range(round(ASK_SECONDS / LOOK_SECONDS)):
        if os.fstat(handle).st_mtime_ns != changed:
            return
        await asyncio.sleep(LOOK_SECONDS)


async def _give_back(client: PrefectClient, lease: UUID) -> None:
    """A lost server is hardly waited for."""
    seconds = LOST_SECONDS if await server_is_lost() else None
    try:
        async with asyncio.timeout(seconds):
            await leases.give_back(client, lease)
    except Exception as error:
        _warn(error)


def _tell(file: Path) -> None:
    """Change the file's time, in nanoseconds, as the kernel's own may stay the same for some milliseconds."""
    with suppress(OSError):
        os.utime(file, ns=(time.time_ns(), time.time_ns()))


def _warn(error: Exception) -> None:
    log.warning("the Prefect server did not answer about the limit %s: %s", host_limit(), error)
