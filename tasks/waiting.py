"""Waiting for submitted tasks so that one failure, or a stop, ends all of them within seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from prefect.futures import PrefectFuture

from vmcellar.errors import CancelledError, TransientError
from vmcellar.progress import CancelToken


def stop_others_on_failure(future: PrefectFuture[Any], cancel: CancelToken) -> PrefectFuture[Any]:
    """Set the run's cancel token, which all stages poll, as soon as this task has failed for good."""
    future.add_done_callback(lambda done: cancel.cancel() if _failed(done) else None)
    return future


async def wait_for_all(futures: Sequence[PrefectFuture[Any]], cancel: CancelToken) -> None:
    """Return when all have succeeded; else raise the error that came first in the DAG.

    When this coroutine is cancelled (Ctrl-C, Cancel in the UI, SIGTERM) all stages are asked to stop. Whatever
    happens, no task runs any more when this returns or raises, so clean-up is safe.
    """
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
    """An upstream's failure leaves the tasks below it not ready, neither failed nor done: all must have completed."""
    states = [future.state for future in futures if not future.state.is_completed()]
    if not states:
        return
    errors = [state.result(raise_on_failure=False) for state in states if state.is_failed() or state.is_crashed()]
    causes = [error for error in errors if isinstance(error, Exception) and not isinstance(error, CancelledError)]
    for error in [*causes, *errors]:
        if isinstance(error, BaseException):
            raise error
    raise TransientError("a task ended without a result", hint="look at the run's tasks, then run the backup again")
