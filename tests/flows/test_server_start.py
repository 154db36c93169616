"""`python -m deployments.server`: Prefect's own command, with the garbage collector in a thread of its own."""

from __future__ import annotations

import gc
import sqlite3
import sys
import threading
import weakref
from contextlib import closing

import pytest

from deployments import server


def test_the_server_is_started_with_the_collector_away_from_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    collectors: list[str] = []
    begun = threading.Event()
    seen: list[tuple[list[str], bool]] = []

    def collect() -> None:
        collectors.append(threading.current_thread().name)
        begun.set()

    monkeypatch.setattr(server, "_collect", collect)
    monkeypatch.setattr(sys, "argv", ["server", "--host", "127.0.0.1"])
    monkeypatch.setattr("prefect.cli.app", lambda: seen.append((sys.argv[1:], gc.isenabled())))
    try:
        server.main()
        assert soft_heap_limit() == server.SQLITE_MIB << 20
    finally:
        gc.enable()
        server.bound_sqlite(0)
    assert begun.wait(60)
    assert seen == [(["server", "start", "--host", "127.0.0.1"], False)]
    assert collectors == ["garbage"]


def soft_heap_limit() -> int:
    """What a connection made later is bound to."""
    with closing(sqlite3.connect(":memory:")) as database:
        return int(database.execute("PRAGMA soft_heap_limit").fetchone()[0])


class Ring:
    """Only the cyclic collector can free one."""

    def __init__(self) -> None:
        self.itself = self


def test_each_round_frees_what_is_new_and_some_free_all() -> None:
    gc.disable()
    try:
        ring = Ring()
        gone = weakref.ref(ring)
        del ring
        server.collect_once(1)
        assert gone() is None
        ring = Ring()
        gone = weakref.ref(ring)
        for _ in range(2):
            gc.collect(1)  # it is in the oldest generation now
        del ring
        server.collect_once(server.OLD_EVERY)
        assert gone() is None
    finally:
        gc.enable()
