"""SQLite files that several processes open at once: how each comes to be written ahead."""

from __future__ import annotations

from typing import Any

BUSY_SECONDS = 20.0
"""How long a writer waits for another one; each holds the tables for milliseconds."""

_WRITE_AHEAD = "PRAGMA journal_mode = WAL"


def write_ahead(connection: Any) -> None:
    """Have the file written ahead. SQLite does not wait for others here, as it does elsewhere: of several processes
    that open a new file at once, some are told at once that it is locked.
    """
    try:
        connection.execute(_WRITE_AHEAD)
    except Exception as error:
        if not _is_locked(error):
            raise
        _again(connection)


def _again(connection: Any) -> None:
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random  # noqa: PLC0415  (asyncio)

    retrying = Retrying(
        retry=retry_if_exception(_is_locked),
        stop=stop_after_delay(BUSY_SECONDS),
        wait=wait_random(0.001, 0.05),
        reraise=True,
    )
    retrying(connection.execute, _WRITE_AHEAD)


def _is_locked(error: BaseException) -> bool:
    return "locked" in str(error)
