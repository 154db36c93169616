"""Running the tasks of one flow run: in threads of their own, stopped together, and never left behind.

Tasks are called, not submitted: a submitted task that waits for its upstream would hold a thread, and one whose
upstream failed is neither failed nor done. Here a chain of tasks just ends.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, cast

from prefect import State, Task
from prefect.context import SyncClientContext

from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken

R = TypeVar("R")


class TaskThreads:
    """A `with` block in which tasks run; all share one HTTP client.

    Without that, Prefect makes a client for every task run and each loads all certificate authorities: measured, five
    tasks take 0.25-0.5 s instead of 0.02 (docs/prefect.md). For one event loop; `workers` tasks run at once.
    """

    def __init__(self, cancel: CancelToken, workers: int) -> None:
        self.cancel = cancel
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="task")
        self._client = SyncClientContext.get_or_create()

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        self._client.__exit__(kind, error, trace)

    async def value(self, task: Task[..., R], *arguments: Any, after: Iterable[State[Any]] = ()) -> R:
        """What the task gives; raises what it raises. See `run`."""
        result: R = await (await self.run(task, *arguments, after=after)).aresult()
        return result

    async def run(self, task: Task[..., R], *arguments: Any, after: Iterable[State[Any]] = ()) -> State[R]:
        """The completed state of the task; `after` are the states that it depends on, for the run's graph.

        When the task fails for good its error is raised, and all others of this run are asked to stop. When this
        coroutine is cancelled the task is asked to stop and waited for; if it succeeds all the same its state is
        given, and the next call raises CancelledError. So no task runs any more once all callers have returned.
        """
        if self.cancel.cancelled:
            _raise_stopped()
        call = partial(cast("Callable[..., State[R]]", task), *arguments, wait_for=[*after], return_state=True)
        work = asyncio.get_running_loop().run_in_executor(self._pool, contextvars.copy_context().run, call)
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:  # it may come again, and changes nothing then
                self.cancel.cancel()
        state = work.result()
        if not state.is_completed():
            self.cancel.cancel()
            if _is_cancelled():
                _raise_stopped()
            await state.aresult()
        return state

    async def all(self, chains: Sequence[Awaitable[R]]) -> list[R]:
        """Run chains of tasks side by side; return when each has ended. The first error that is not just the stop that
        another one caused is raised then.
        """
        results = await asyncio.gather(*(self._stop_all_on_error(chain) for chain in chains), return_exceptions=True)
        if self.cancel.cancelled and _is_cancelled():
            _raise_stopped()
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in sorted(errors, key=lambda error: isinstance(error, CancelledError | asyncio.CancelledError)):
            raise error
        return [result for result in results if not isinstance(result, BaseException)]

    async def _stop_all_on_error(self, chain: Awaitable[R]) -> R:
        try:
            return await chain
        except BaseException:
            self.cancel.cancel()
            raise


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _raise_stopped() -> NoReturn:
    """Our own error tells why a task was not run; asyncio's own where this coroutine was cancelled, as it expects."""
    if _is_cancelled():
        raise asyncio.CancelledError
    raise CancelledError("stopped on request")
