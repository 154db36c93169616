"""Hooks around a flow run: in a thread, waited for in any case, their output in the run's log."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from prefect import get_run_logger

from tasks.control import Activity
from vmcellar.backup.hooks import Hooks
from vmcellar.backup.model import BackupRequest
from vmcellar.engine import Engine
from vmcellar.progress import CancelToken


@asynccontextmanager
async def hooked(engine: Engine, request: BackupRequest, work: Activity) -> AsyncIterator[Hooks]:
    """As `vmcellar.backup.hooks.hooked`, for a flow. A flow that is cancelled stops those of `before` alone."""
    hooks = Hooks(engine, request)
    try:
        await run_hooks(hooks, partial(hooks.before, work.cancel), work.cancel)
        yield hooks
    except BaseException as error:
        hooks.point = work.point
        await run_hooks(hooks, partial(hooks.finish, error))
        raise
    hooks.point = work.point
    await run_hooks(hooks, partial(hooks.finish, None))


async def run_hooks(hooks: Hooks, call: Callable[[], None], cancel: CancelToken | None = None) -> None:
    """Run `call` in a thread and wait for its end, also when this coroutine is cancelled: that is passed on then."""
    if not hooks:
        return
    said = len(hooks.lines)
    work = asyncio.get_running_loop().run_in_executor(None, contextvars.copy_context().run, call)
    stopped: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            stopped = error
            if cancel is not None:
                cancel.cancel()
    for line in hooks.lines[said:]:
        get_run_logger().info("%s", line)
    if stopped is not None:
        work.exception()  # what it raised because of the stop is not the error that counts
        raise stopped
    work.result()
