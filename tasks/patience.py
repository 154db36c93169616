"""How long a served flow run waits for its server, once that is lost: as long as the command line does, not minutes.

Prefect's client tries a request again for about a minute, and its workers for events and logs hold the process up at
its end. A run of the command line leaves that behind (`vmcellar.cli.flowrun`); this is the same for the processes in
which `deployments.serve` and workers run flows. Anywhere else all requests have their time.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

from tasks.server import LOOK_SECONDS, PATIENCE, stays_silent
from vmcellar.errors import TransientError

T = TypeVar("T")

_silent = threading.Event()


class PrefectLostError(TransientError):
    """The Prefect server does not answer any more."""


def is_process_of(flow_run: UUID) -> bool:
    """Whether this process was made to run that one flow run and end then."""
    return os.environ.get("PREFECT__FLOW_RUN_ID", "") == str(flow_run)


async def server_is_lost() -> bool:
    """Whether this process serves a flow run and its server is silent; waits for it `PATIENCE` seconds the first time,
    and not at all while it stays so.
    """
    url = os.environ.get("PREFECT_API_URL", "") if os.environ.get("PREFECT__FLOW_RUN_ID") else ""
    lost = bool(url) and await asyncio.to_thread(stays_silent, url, 0.0 if _silent.is_set() else PATIENCE)
    (_silent.set if lost else _silent.clear)()
    return lost


async def patient(request: Awaitable[T], over: Callable[[], bool] = lambda: True) -> T:
    """What `request` gives; PrefectLostError where the server is lost and, by `over`, only it is waited for.

    The request is stopped then, and its end not waited for. A cancel is passed on to it, and its end waited for.
    """
    running = asyncio.ensure_future(request)
    running.add_done_callback(_heard)
    while not running.done():
        try:
            await asyncio.wait([running], timeout=LOOK_SECONDS)
            if not running.done() and over() and await server_is_lost():
                running.cancel()
                raise PrefectLostError("the Prefect server does not answer any more")
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait([running])
            raise
    return await running


def leave_when_lost(code: int) -> None:
    """From now on only Prefect is waited for: end this process with `code` once the server has been lost."""
    url = os.environ.get("PREFECT_API_URL", "")

    def watch() -> None:
        pause = threading.Event()
        while not stays_silent(url, PATIENCE):
            pause.wait(LOOK_SECONDS)
        sys.stderr.write("the Prefect server does not answer any more: leaving without it\n")
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=watch, name="server-watch", daemon=True).start()


def _heard(ended: asyncio.Future[Any]) -> None:
    if not ended.cancelled():
        ended.exception()  # asyncio complains of errors that nobody asked for
