"""Prefect's server, for `prefect server start` with the same arguments: `python -m deployments.server [OPTIONS]`.

On SQLite the server's event loop must never be the thread in which Python's cyclic garbage collector runs. A cursor
that it finds there is reset, which waits for its connection; while another thread waits in that connection for the lock
of the database, and who holds that lock waits for the event loop, nothing goes on for SQLite's whole time limit, which
Prefect sets to a minute. Seen with 20 jobs at work: no answer for 20 s and more, again and again. So the collector runs
in a thread of its own here.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading

SECONDS = 1.0
"""Between two collections; one of the young objects takes milliseconds."""
OLD_EVERY = 60
"""Every so many collections all objects are looked at, which takes a quarter of a second."""


def main() -> None:
    """Run the server until it is stopped."""
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()
    from prefect.cli import app  # noqa: PLC0415  (it is to be loaded with the collector off already)

    sys.argv[1:1] = ["server", "start"]
    app()


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
