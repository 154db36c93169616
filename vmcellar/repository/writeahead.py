"""SQLite files that several processes open at once: how each comes to be written ahead."""

from __future__ import annotations

from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

BUSY_SECONDS = 20.0
"""How long a writer waits for another one; each holds the tables for milliseconds."""


def write_ahead(connection: Any) -> None:
    """Have the file written ahead. SQLite does not wait for others here, as it does elsewhere: of several processes
    that open a new file at once, some are told at once that it is locked.
    """
    retrying = Retrying(
        retry=retry_if_exception(lambda error: "locked" in str(error)),
        stop=stop_after_delay(BUSY_SECONDS),
        wait=wait_random(0.001, 0.05),
        reraise=True,
    )
    retrying(connection.execute, "PRAGMA journal_mode = WAL")
