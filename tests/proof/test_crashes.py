"""Killed at every durable step of every command that writes: nothing is lost, and the command run again completes.

SIGKILL before each fsync, link, rename, unlink and mkdir that a command makes, each time in a forked process
(`tests/faults`; by hand: `python -m tests.faults`). After each kill every committed point restores equal, on the host
that died and on one that has never seen the repository, a deep scrub finds nothing, and the command again ends well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.require import requires
from tests.tiers.conftest import mounted

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["key-add-passphrase", "key-add-recipient", "key-remove", "key-rotate", "key-rotate-recipient"]
SOME = ["init", "backup-incremental", "restore", "gc-delete", "consolidate", "rebuild-index", "key-rotate"]
UPKEEP = ["prune", "pin", "unpin", "gc-mark", "gc-delete", "rebuild-index"]


def faults(*arguments: str) -> list[str]:
    """The lines of a run without harm."""
    command = [sys.executable, "-m", "tests.faults", *arguments]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(ran.stdout)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr[-6000:]}"
    return ran.stdout.splitlines()


@pytest.mark.parametrize(
    "names",
    [["init", "init-recipient", "restore"], ["backup-incremental", "recover"], UPKEEP, KEYS],
    ids=["init, restore", "backup", "upkeep", "keys"],
)
def test_killed_before_every_step(names: list[str]) -> None:
    """And so after the one before it; by hand between these, too."""
    lines = faults(*names, "--every", "2")
    assert len(lines) == len(names)
    for line in lines:
        found = re.search(r"(\d+) of (\d+) steps, (\d+) fired", line)
        assert found, line
        tried, steps, fired = map(int, found.groups())
        assert tried == -(-steps // 2)
        assert fired >= tried * 0.9, "threads may make a step more or less"


def test_killed_at_some_steps_of_what_is_much_the_same() -> None:
    """A first backup, one in recipient mode, repairs, a proof, index parts put together; by hand at each step."""
    names = [
        "backup-full",
        "backup-recipient",
        "repair",
        "repair-keys",
        "repair-point",
        "verify-notes",
        "prove",
        "gc-merge",
    ]
    assert len(faults(*names, "--every", "25")) == len(names)


def test_moving_packs_killed_at_some_steps() -> None:
    """Before some calls and after others; by hand at each step."""
    lines = faults("tiers-move", "tiers-copies", "tiers-bring", "--every", "40")
    lines += faults("tiers-thaw", "restore-as-thawed", "tiers-add", "--every", "19")
    assert len(lines) == 6
    assert all(re.search(r"[1-9]\d* fired", line) for line in lines)


def test_consolidate_killed_at_one_step_in_five() -> None:
    """Before some calls and after others; by hand at each step."""
    (line,) = faults("consolidate", "--every", "5")
    assert " fired" in line


def test_overwriting_a_disk_killed_at_some_steps() -> None:
    """The same command finishes it; by hand at each step."""
    requires("qemu-nbd")
    (line,) = faults("restore-onto", "--every", "11")
    assert re.search(r"[1-9]\d* fired", line)


@pytest.mark.parametrize("mode", ["EIO-once", "ENOSPC", "vanish", "power-cut"])
def test_failing_calls(mode: str) -> None:
    """One fsync or other call fails, or all from one on, or the folder of the tier is unmounted, or what no fsync made
    durable is gone: an error in words, all else as after a kill, and what a command said it had done is done.
    """
    lines = faults("--mode", mode, "--every", "9", *SOME)
    fired = [int(found[1]) for found in map(re.compile(r"(\d+) fired").search, lines) if found]
    assert len(fired) == len(lines)
    assert sum(fired) > 10


@pytest.mark.parametrize("mode", ["full", "read-only"])
def test_a_real_file_system(mode: str, tmp_path: Path) -> None:
    """A tmpfs with no room, then a little more until the command succeeds; and one that is mounted read-only."""
    with mounted(tmp_path / "probe", "1m"):  # skips where nothing may be mounted
        pass
    names = ["backup-incremental", *UPKEEP, "key-rotate"]
    names.remove("unpin")  # only deletes: a full disk does not stop it
    lines = faults("--mode", mode, *names)
    assert len(lines) == len(names)
