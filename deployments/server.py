"""Prefect's server, for `prefect server start` with the same arguments: `python -m deployments.server [OPTIONS]`.

On SQLite the server's event loop must never be the thread in which Python's cyclic garbage collector runs. A cursor
that it finds there is reset, which waits for its connection; while another thread waits in that connection for the lock
of the database, and who holds that lock waits for the event loop, nothing goes on for SQLite's whole time limit, which
Prefect sets to a minute. Seen with 20 jobs at work: no answer for 20 s and more, again and again. So the collector runs
in a thread of its own here.

And Prefect lets each of its connections to SQLite keep 80 MiB of pages, so the server would grow by its database again
and again for hours, until there are some fifteen such caches. Here all of them together have `SQLITE_MIB`.
"""

from __future__ import annotations

import gc
import itertools
import sqlite3
import sys
import threading
from contextlib import closing

SECONDS = 1.0
"""Between two collections; one of the young objects takes milliseconds."""
OLD_EVERY = 60
"""Every so many collections all objects are looked at, which takes a quarter of a second."""

SQLITE_MIB = 64


def main() -> None:
    """Run the server until it is stopped."""
    bound_sqlite(SQLITE_MIB)
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()
    from prefect.cli import app  # noqa: PLC0415  (it is to be loaded with the collector off already)

    sys.argv[1:1] = ["server", "start"]
    app()


def bound_sqlite(mib: int) -> None:
    """From then on SQLite, in all of this process, uses its pages again rather than take more memory; 0: no bound."""
    with closing(sqlite3.connect(":memory:")) as any_database:
        any_database.execute(f"PRAGMA soft_heap_limit = {mib << 20}")


def collect_once(count: int) -> None:
    """The round of this number, from 1 on."""
    gc.collect(2 if count % OLD_EVERY == 0 else 1)


def _collect() -> None:
    pause = threading.Event()
    for count in itertools.count(1):
        pause.wait(SECONDS)
        collect_once(count)


if __name__ == "__main__":
    main()
