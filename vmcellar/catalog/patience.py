"""Connections to PostgreSQL that give up a server which says nothing.

A server's own `statement_timeout` ends what takes too long, and keep-alives notice a host that is gone. Neither helps
against a server whose process was stopped, or that waits for an absent standby, while its host goes on to acknowledge
packets. So a client has to count for itself how long nothing came.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

if TYPE_CHECKING:
    from psycopg.abc import PQGen

    T = TypeVar("T")

GRACE_SECONDS = 10.0
"""How much longer than the server's own limit of a statement its answer may take."""
FIRST_SECONDS = 10.0
"""How long the answer to the first, trivial statement may take."""
_LIMIT = "SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'"
"""In milliseconds, zero for none."""


class PatientConnection(psycopg.Connection[Any]):
    """One connection. While it waits and nothing came for `silence` seconds it is closed, with an OperationalError that
    says so; None waits for ever. What was asked for last may have been done.
    """

    silence: float | None = FIRST_SECONDS

    def wait(self, gen: PQGen[T], *arguments: Any, **named: Any) -> T:
        """As of psycopg, which comes here for whatever it waits for once it is connected."""
        return super().wait(self._counted(gen), *arguments, **named)

    def _counted(self, inner: PQGen[T]) -> PQGen[T]:
        """The same generator, looked at each time that psycopg wakes up (some times a second)."""
        heard = time.monotonic()
        try:
            wanted = next(inner)
            while True:
                ready = yield wanted
                if ready:
                    heard = time.monotonic()
                elif self.silence is not None and time.monotonic() - heard > self.silence:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"its server gave no answer for {self.silence:.0f} s")
                wanted = inner.send(ready)
        except StopIteration as done:
            answer: T = done.value
            return answer


def connect(*arguments: Any, **named: Any) -> PatientConnection:
    """As `psycopg.connect`; its patience is the limit of a statement, as the server has it from options, role or
    database, and `GRACE_SECONDS`.
    """
    connection = PatientConnection.connect(*arguments, **named)
    try:
        connection.autocommit = True
        ((limit,),) = connection.execute(_LIMIT).fetchall()
        connection.autocommit = False
    except BaseException:
        connection.close()
        raise
    connection.silence = limit / 1000 + GRACE_SECONDS if limit else None
    return connection
