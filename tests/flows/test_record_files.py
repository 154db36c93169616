"""The record of a flow run: whose process lives, and what a dead one's run is called. No server."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import Flow
from prefect.client.schemas.objects import StateType

import flows
from deployments.wanted import FORMS
from tasks.runrecords import Record, _read, _state, _write, folder_of, living, recorded

HOLDER = """
import sys
from pathlib import Path
from tasks.runrecords import Record, _write
_write(Path(sys.argv[1]), Record("r", "", 1))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_lives_as_long_as_its_process(tmp_path: Path) -> None:
    """The record stays when the process is killed; its lock does not."""
    run = str(uuid4())
    folder_of(tmp_path).mkdir()
    path = folder_of(tmp_path) / f"{run}.json"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert living(tmp_path) == {run}
        process.kill()
        process.wait()
    assert living(tmp_path) == set()
    assert _read(path) == Record("r", "", 1)


def test_what_came_of_a_run_replaces_its_record_and_keeps_it_locked(tmp_path: Path) -> None:
    folder_of(tmp_path).mkdir()
    path = folder_of(tmp_path) / "r.json"
    begun = _write(path, Record("r", "", 1))
    ended = _write(path, Record("r", "", 1, "completed", "web1: point p1"))
    os.close(begun)
    assert living(tmp_path) == {"r"}
    os.close(ended)
    assert living(tmp_path) == set()
    assert _read(path) == Record("r", "", 1, "completed", "web1: point p1")


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"id": ')
    assert _read(tmp_path / "r.json") is None
    assert living(tmp_path / "no such folder") == set()


@pytest.mark.parametrize(
    ("end", "now", "kind"),
    [
        ("completed", StateType.RUNNING, StateType.COMPLETED),
        ("failed", StateType.RUNNING, StateType.FAILED),
        ("", StateType.RUNNING, StateType.CRASHED),
        ("", StateType.CANCELLING, StateType.CANCELLED),
    ],
)
def test_what_a_dead_run_is_called(end: str, now: StateType, kind: StateType) -> None:
    assert _state(Record("r", "", 1, end, "why"), now).type == kind


def test_every_deployed_flow_keeps_a_record() -> None:
    """And so does each that may be deployed: all flows there are."""
    modules = [importlib.import_module(f"flows.{each.name}") for each in pkgutil.iter_modules(flows.__path__)]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, Flow)} | {*FORMS}
    assert len(found) >= len(FORMS)
    assert {flow.name for flow in found if not is_recorded(flow)} == set()


def is_recorded(flow: Flow[..., Any]) -> bool:
    """Whether the flow's function is what `recorded` makes."""
    return flow.fn.__code__ in recorded.__code__.co_consts
