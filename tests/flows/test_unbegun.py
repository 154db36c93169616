"""Runs whose process died before their flow began: which are settled, and which are left alone.

`test_faults.py` has a worker that dies, with a server (by hand).
"""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling, Completed, Pending, Running, Scheduled

from tasks.unbegun import SETTLED_AFTER, at_work, is_of_this_host_alone, is_stale

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("make", "stale"), [(Pending, True), (Running, True), (Cancelling, True), (Scheduled, False), (Completed, False)]
)
def test_only_states_that_ought_to_pass_are_stale_and_only_after_their_time(make: type, stale: bool) -> None:
    state = make(timestamp=NOW - SETTLED_AFTER - timedelta(seconds=1))
    assert is_stale(state, NOW) is stale
    assert state.type != StateType.CRASHED
    assert not is_stale(make(timestamp=NOW - SETTLED_AFTER + timedelta(seconds=1)), NOW)
    assert not is_stale(None, NOW)


def test_runs_are_found_in_the_environment_of_the_processes_that_were_started_for_them(tmp_path: Path) -> None:
    run = uuid4()
    for pid, environment in {
        "17": b"HOME=/root\0PREFECT__FLOW_RUN_ID=" + str(run).encode() + b"\0LANG=C\0",
        "18": b"PREFECT__FLOW_RUN_ID=not one\0",
        "19": b"OTHER_PREFECT__FLOW_RUN_ID=" + str(uuid4()).encode() + b"\0",
        "self": b"PREFECT__FLOW_RUN_ID=" + str(uuid4()).encode(),
    }.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "environ").write_bytes(environment)
    (tmp_path / "20").mkdir()
    (tmp_path / "20" / "environ").symlink_to(tmp_path / "gone")
    assert at_work(tmp_path) == {run}


def test_the_kernel_shows_them() -> None:
    """A process that has the variable from its start, as a worker's have, is seen as long as it lives."""
    run = uuid4()
    named = {**os.environ, "PREFECT__FLOW_RUN_ID": str(run)}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=named) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"up\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"up\n", "its environment is there only once it has begun"
        assert run in at_work(Path("/proc"))
    assert run not in at_work(Path("/proc"))


@pytest.mark.parametrize(
    ("place", "url", "alone"),
    [
        ("vmcellar-kvm1", "http://backup.example:4200/api", True),
        ("vmcellar-here", "http://127.0.0.1:4200/api", True),
        ("vmcellar-here", "http://[::1]:4200/api", True),
        ("vmcellar-here", "http://localhost:4200/api", True),
        ("vmcellar-here", "http://backup.example:4200/api", False),
        ("vmcellar-here", "", False),
    ],
)
def test_runs_that_serve_took_are_of_this_host_only_where_the_server_is(place: str, url: str, alone: bool) -> None:
    assert is_of_this_host_alone(place, url) is alone
