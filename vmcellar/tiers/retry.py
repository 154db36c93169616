"""Retries of what may pass, by class of error alone: TransientError is tried again, all else is raised at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from vmcellar.errors import TransientError

ATTEMPTS = 6
WAIT_MOST = 20.0

T = TypeVar("T")


class Patience:
    """How often a request is tried, and how long is waited in between. Any thread."""

    def __init__(self, attempts: int = ATTEMPTS, pause: float = 0.25) -> None:
        """`pause` is the longest first wait in seconds; it doubles, with full jitter, up to 20 s."""
        self._retrying = Retrying(
            retry=retry_if_exception_type(TransientError),
            wait=wait_random_exponential(multiplier=pause, max=WAIT_MOST),
            stop=stop_after_attempt(attempts),
            reraise=True,
        )

    def __call__(self, call: Callable[[], T]) -> T:
        """What `call` returns; the last error when all attempts failed."""
        return self._retrying.copy()(call)
