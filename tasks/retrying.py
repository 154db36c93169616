"""When a task is worth another try: the class of its error says so, never its text."""

from __future__ import annotations

from typing import Any

from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff

from vmcellar.errors import TransientError

DELAYS = exponential_backoff(backoff_factor=1)
"""1, 2, 4, 8 seconds, lengthened by jitter. Prefect sleeps these where no cancel token reaches, and kills a flow that
does not end within 30 s of Cancel, so the longest stays well below that."""
JITTER = 0.5


def is_transient(task: Any, task_run: Any, state: Any) -> bool:  # noqa: ARG001  (Prefect passes all three by position)
    """Whether the failed state holds an error that may pass by itself. Never raises."""
    try:
        error = state.result(raise_on_failure=False)
    except Exception:
        return False
    return isinstance(error, TransientError)


TRIES = 5
"""How often a task of ours is run at most."""


def is_last_try() -> bool:
    """Whether the task that asks is not run again, whatever its error."""
    context = TaskRunContext.get()
    return context is not None and context.task_run.run_count >= TRIES


RETRIED: dict[str, Any] = {
    "retries": TRIES - 1,
    "retry_delay_seconds": DELAYS,
    "retry_jitter_factor": JITTER,
    "retry_condition_fn": is_transient,
}
"""Options of every task of ours."""
