"""`vmcellar locks`: what the kernel says is held."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "vmcellar.yaml"
    path.write_text("state: state\n")
    (tmp_path / "state" / "locks").mkdir(parents=True)
    return path


def test_held_locks_are_shown_and_free_ones_are_not(cli: Cli, config: Path) -> None:
    locks = config.parent / "state" / "locks"
    (locks / "idle.lock").write_text("1\n")
    with (locks / "db%2f1.lock").open("w+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(f"{os.getpid()}\n")
        held.flush()
        (entry,) = json.loads(cli("locks", "--json").out)
        shown = cli("locks").out
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert entry.keys() == {"vm", "pid", "command", "since", "host", "boot"}
    assert (entry["vm"], entry["pid"]) == ("db/1", str(os.getpid()))
    assert "python" in entry["command"]
    assert entry["since"].startswith("20")
    assert "db/1" in shown
    assert "idle" not in shown


def test_none_held(cli: Cli, config: Path) -> None:
    assert cli("locks", "--json", "--config", config).out == "[]\n"
    assert "no VM is being worked on" in cli("locks").err
