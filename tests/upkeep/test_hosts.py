"""Hosts, each a real process with its own state directory, boot and clock, at work on one repository at the same time.

In each round all are let go at once: three back up their VMs, whose disks have much in common with each other and with
points that are pruned, and one prunes and collects garbage without a grace time. When all have answered, every point
that was committed and not dropped is there and restores equal. VMCELLAR_ROUNDS=N plays N rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.cellar import Cellar, stand_ins
from tests.upkeep.one_host import Answer
from vmcellar.repository import layout, leases
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.upkeep import gc

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("VMCELLAR_ROUNDS", "3"))
VMS = {"web": -leases.SKEW, "db": 0.0, "mail": leases.SKEW}
"""The hosts that back up, and how wrong their clocks are."""


class Process:
    """One host."""

    def __init__(self, folder: Path, name: str, skew: float) -> None:
        command = [sys.executable, "-m", "tests.upkeep.one_host", str(folder), name, str(skew)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._ran = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, *words: object) -> None:
        """Let it go."""
        assert self._ran.stdin is not None
        self._ran.stdin.write(" ".join(map(str, words)) + "\n")
        self._ran.stdin.flush()

    def answer(self) -> Answer:
        """Wait until it has done what was asked."""
        assert self._ran.stdout is not None
        line = self._ran.stdout.readline()
        assert line, "the host's process ended; its error is above"
        return Answer(**json.loads(line))

    def end(self) -> None:
        """It ends when it has done what it does."""
        with self._ran:
            pass


def alone(host: Process, *words: object) -> Answer:
    """What it did while no other host worked."""
    host.ask(*words)
    return host.answer()


@contextmanager
def hosts(folder: Path) -> Iterator[dict[str, Process]]:
    """All of them, ready."""
    with ExitStack() as stack:
        made = {}
        for name, skew in [*VMS.items(), ("collector", 0.0)]:
            made[name] = Process(folder, name, skew)
            stack.callback(made[name].end)
        yield made


def cellars(folder: Path) -> dict[str, Cellar]:
    """The folder of each host; the repository is that of all."""
    made = {}
    (folder / "hot").mkdir()
    for name in [*VMS, "collector"]:
        (folder / name).mkdir()
        (folder / name / "hot").symlink_to(folder / "hot")
        made[name] = Cellar(folder / name)
        made[name].make_folder()
    return made


def check(folder: Path, own: dict[str, Cellar], expected: set[str]) -> None:
    """What a host that has never seen the repository finds: these points and no others, and each restores equal."""
    fresh = Cellar(folder / f"fresh-{len(expected)}-{os.urandom(4).hex()}")
    fresh.folder.mkdir()
    fresh.make_folder()
    (fresh.folder / "hot").symlink_to(folder / "hot")
    repository = fresh.open()
    try:
        points = repository.points()
        assert {point.id for point in points} == expected
        for point in points:
            own[point.vm].check_point(repository, point)
        report = verify_all(repository, deep=True)
        assert report.ok, report.findings
    finally:
        repository.close()


def test_hosts_back_up_while_one_prunes_and_collects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in stand_ins():
        monkeypatch.setattr(module, name, value)
    own = cellars(tmp_path)
    Repository.init(own["web"].config).close()
    deleted: list[str] = []
    with hosts(tmp_path) as running:
        # gc refuses beside the very first backup: packs without any point are doubtful
        there = set(alone(running["db"], "back-up", 0).made)
        for number in range(ROUNDS):
            for place, name in enumerate(VMS):
                running[name].ask("back-up", *(1 + (number * 2 + place + more) % 5 for more in (0, 1, 3)))
            running["collector"].ask("collect", 2)
            answers = [process.answer() for process in running.values()]
            made = {point for answer in answers for point in answer.made}
            assert len(made) == 3 * len(VMS)
            there = (there | made) - {point for answer in answers for point in answer.dropped}
            deleted += [key for answer in answers for key in answer.deleted]
            check(tmp_path, own, there)
            # leaves marks that the backups of the next round know, so that gc deletes beside them (not by all means: it
            # waits for a backup that is just beginning)
            there -= set(alone(running["collector"], "collect", 1).dropped)
        last = alone(running["collector"], "collect", 2)
        there -= set(last.dropped)
    check(tmp_path, own, there)
    print(f"{len(deleted)} packs deleted beside backups")
    assert deleted or last.deleted
    repository = own["db"].open()
    try:
        report = gc.collect(repository, dry_run=True)
        assert (report.packs, report.marked, report.waiting) == (report.needed, (), ())
        assert list(repository.tier.list(layout.LEASES)) == []
    finally:
        repository.close()
