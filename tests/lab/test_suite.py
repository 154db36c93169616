"""The suite as two processes: each test runs once, either may fail, and an interruption ends both in order."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.waiting import wait_for
from tests.docs.pages import ROOT

CONFTEST = "from tests.conftest import libvirt_daemons, pytest_addoption, pytest_collection_modifyitems"
SETTINGS = "[pytest]\nmarkers = libvirt\n"
EACH = """
import pytest

@pytest.fixture
def server(): ...

@pytest.mark.libvirt
def test_marked(): print("said by marked")

def test_with_a_server(server): ...

def test_other(): print("said by other")
"""
STUCK = """
import os, signal
from pathlib import Path
import pytest

@pytest.fixture
def tidied(request):
    place = Path(request.node.name)
    place.with_suffix(".pid").write_text(f"{os.getpid()}\\n")
    yield
    place.with_suffix(".tidy").touch()

@pytest.mark.libvirt
def test_one(tidied): signal.pause()

def test_two(tidied): signal.pause()
"""


@contextmanager
def suite(folder: Path, tests: str) -> Iterator[subprocess.Popen[str]]:
    """A suite of this one file, split and run by what splits and runs the real one."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(SETTINGS)
    (folder / "test_it.py").write_text(tests)
    with subprocess.Popen(
        [sys.executable, "-m", "lab.suite", "-rA"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as running:  # fmt: skip
        try:
            yield running
        finally:
            running.terminate()


def ended(running: subprocess.Popen[str]) -> str:
    """What it said, once it has ended."""
    said, _ = running.communicate(timeout=120)
    return said


def test_each_test_runs_in_one_of_both_and_all_are_counted(tmp_path: Path) -> None:
    with suite(tmp_path, EACH) as running:
        said = ended(running)
    assert running.returncode == 0
    assert re.findall(r"^PASSED test_it.py::(\w+)", said, re.MULTILINE) == [
        "test_marked", "test_with_a_server", "test_other",
    ]  # fmt: skip
    assert "said by marked" in said
    assert "said by other" in said
    assert re.search(r"^machine: 2 tests, 0 failed, 0 errors, 0 skipped, \d+:\d\d minutes, exit code 0$", said, re.M)
    assert re.search(r"^rest: 1 tests, 0 failed, 0 errors, 0 skipped, \d+:\d\d minutes, exit code 0$", said, re.M)
    assert said.endswith("\ntogether: 3 tests\n")


def test_a_failure_of_the_first_part_fails_the_whole(tmp_path: Path) -> None:
    with suite(tmp_path, EACH.replace("test_marked():", "test_marked(): assert 2 + 2 == 5;")) as running:
        said = ended(running)
    assert running.returncode == 1
    assert "FAILED test_it.py::test_marked" in said
    assert said.endswith("\ntogether: 3 tests\n")


def test_a_part_that_gives_no_result_fails_the_whole(tmp_path: Path) -> None:
    with suite(tmp_path, EACH.replace('print("said by other")', "__import__('os')._exit(0)")) as running:
        said = ended(running)
    assert running.returncode == 1
    assert "rest: no result" in said


def test_a_hidden_need_of_libvirt_fails_beside_the_others(tmp_path: Path) -> None:
    hidden = "def test_hidden(request): request.getfixturevalue('libvirt_daemons')\n"
    with suite(tmp_path, EACH + hidden) as running:
        said = ended(running)
    assert running.returncode == 1
    assert "FAILED test_it.py::test_hidden - Failed: a test that needs libvirt" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_ends_both_in_order(tmp_path: Path, number: signal.Signals) -> None:
    places = [tmp_path / "test_one.pid", tmp_path / "test_two.pid"]
    with suite(tmp_path, STUCK) as running:
        wait_for(lambda: all(place.exists() and place.read_text().endswith("\n") for place in places), "both tests")
        with ExitStack() as stack:
            parts = [stack.enter_context(os.fdopen(os.pidfd_open(int(place.read_text())))) for place in places]
            running.send_signal(number)
            ended(running)
            for part in parts:  # readable once it has ended, also where process 1 is slow to collect the dead
                assert select.select([part], [], [], 60)[0]
    assert running.returncode != 0
    assert all(place.with_suffix(".tidy").exists() for place in places)
