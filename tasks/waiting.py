"""Waiting for submitted tasks so that one failure, or a stop, ends all of them within seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from prefect.futures import PrefectFuture

from tasks.control import controls
from vmcellar.errors import CancelledError, TransientError


async def wait_for_all(futures: Sequence[PrefectFuture[Any]], run_id: str) -> None:
    """Return when all have succeeded; else raise the error that came first in the DAG.

    As soon as one fails, or this coroutine is cancelled (Ctrl-C, Cancel in the UI, SIGTERM), the run's cancel token
    is set, which all stages poll. Whatever happens, no task runs any more when this returns or raises, so clean-up
    is safe.
    """
    _, cancel = controls(run_id)
    for future in futures:
        future.add_done_callback(lambda done: cancel.cancel() if _failed(done) else None)
    try:
        await asyncio.to_thread(_wait, futures)
    except BaseException:
        cancel.cancel()
        _wait(futures)
        raise
    _raise_first(futures)


def _wait(futures: Sequence[PrefectFuture[Any]]) -> None:
    for future in futures:
        future.wait()


def _failed(future: PrefectFuture[Any]) -> bool:
    return future.state.is_failed() or future.state.is_crashed()


def _raise_first(futures: Sequence[PrefectFuture[Any]]) -> None:
    """An upstream's failure leaves the tasks below it not ready, neither failed nor done: all must have
    completed.
    """
    states = [future.state for future in futures if not future.state.is_completed()]
    if not states:
        return
    errors = [state.result(raise_on_failure=False) for state in states if state.is_failed() or state.is_crashed()]
    causes = [error for error in errors if isinstance(error, Exception) and not isinstance(error, CancelledError)]
    for error in [*causes, *errors]:
        if isinstance(error, BaseException):
            raise error
    raise TransientError("a task ended without a result", hint="look at the run's tasks, then run the backup again")
