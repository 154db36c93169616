"""When a task is worth another try: the class of its error says so, never its text."""

from __future__ import annotations

from typing import Any

from prefect.tasks import exponential_backoff

from vmcellar.errors import TransientError

RETRIES = 4
DELAYS = exponential_backoff(backoff_factor=2)
"""2, 4, 8, 16 seconds, lengthened by jitter."""
JITTER = 0.5


def is_transient(task: Any, task_run: Any, state: Any) -> bool:  # noqa: ARG001  (Prefect passes all three by position)
    """Whether the failed state holds an error that may pass by itself. Never raises."""
    try:
        error = state.result(raise_on_failure=False)
    except Exception:
        return False
    return isinstance(error, TransientError)
