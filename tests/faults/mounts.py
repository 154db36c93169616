"""Real file systems that are full or turn read-only, under the folder of the tier."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.trial import Outcome, Scenario, TrialError, fails, go_on, in_child
from vmcellar.tiers.reserve import RESERVE

SIZE = 32 << 20
PAGE = 4096
BALLAST = "ballast"
FULL = "full"
READ_ONLY = "read-only"


def run_mounted(scenario: Scenario, folder: Path, mode: str) -> Outcome:
    """FULL: the command again and again with a little more room, from none, until it succeeds; with what is reserved
    for it, where there is anything, once before that. READ_ONLY: once.

    TrialError when the command does harm. Needs root, and a kernel that mounts a tmpfs.
    """
    trial, kept = folder / "trial", folder / "kept"
    trial.mkdir()
    in_child(lambda: scenario.prepare(trial), f"{scenario.name}: prepare")
    shutil.copytree(trial, kept)
    shutil.rmtree(trial / "hot")
    outcome = Outcome(scenario.name, mode)
    reserved = kept / "hot" / RESERVE
    with _mounted(trial / "hot"):
        if mode == FULL and reserved.exists():
            _restore(kept, trial)
            where = f"{scenario.name}: {mode}, with a reserve"
            go_on(scenario, trial, where, failed=_full(scenario, trial, 0, where))
            reserved.unlink()
        for pages in _room() if mode == FULL else (0,):
            _restore(kept, trial)
            where = f"{scenario.name}: {mode}, {pages} pages of room" if mode == FULL else f"{scenario.name}: {mode}"
            failed = _full(scenario, trial, pages, where) if mode == FULL else _read_only(scenario, trial, where)
            outcome.tried += 1
            outcome.died += failed
            go_on(scenario, trial, where, failed=failed)
            if not failed:
                break
    if not outcome.died:
        raise TrialError(f"{scenario.name}: {mode}: the command did not notice")
    return outcome


def _room() -> Iterator[int]:
    pages = 0
    while True:
        yield pages
        pages += 1 + pages // 4


def _full(scenario: Scenario, trial: Path, pages: int, where: str) -> bool:
    ballast = trial / "hot" / BALLAST
    found = os.statvfs(trial / "hot")
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - pages * PAGE)
    try:
        return fails(lambda: scenario.act(trial), trial, where)
    finally:
        ballast.unlink()


def _read_only(scenario: Scenario, trial: Path, where: str) -> bool:
    _mount("-o", "remount,ro", str(trial / "hot"))
    try:
        return fails(lambda: scenario.act(trial), trial, where)
    finally:
        _mount("-o", "remount,rw", str(trial / "hot"))


def _restore(kept: Path, trial: Path) -> None:
    """The trial as it was prepared; the mount stays."""
    for path in [*trial.iterdir(), *(trial / "hot").iterdir()]:
        if path.is_dir() and path != trial / "hot":
            shutil.rmtree(path)
        elif not path.is_dir():
            path.unlink()
    shutil.copytree(kept, trial, dirs_exist_ok=True)


@contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
