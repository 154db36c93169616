"""The command line as its users meet it: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.repository.writing import back_up
from vmcellar.cli import main as cli_main
from vmcellar.config import load_config
from vmcellar.crypto.passphrase import Argon2Cost
from vmcellar.policy import retention
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Result:
    """What one call gave."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs the command in this process, from an empty folder, with no configuration of the machine's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VMCELLAR_CONFIG", raising=False)
    monkeypatch.setattr("vmcellar.config.load.SYSTEM_FILE", tmp_path / "no-system-file.yaml")

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["vmcellar", *(os.fspath(argument) for argument in arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli_main.main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run


SIZE = 8 << 20
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Cellar:
    """A real repository with two points of one VM and one of another, and the bytes of each point's disk."""

    folder: Path
    config: Path
    first: RestorePoint
    second: RestorePoint
    other: RestorePoint
    disks: dict[str, bytes]


@pytest.fixture(scope="session")
def cellar_template(tmp_path_factory: pytest.TempPathFactory) -> Cellar:
    """Built once, through the repository's own interface, as a backup does; with a key slot that opens quickly."""
    folder = tmp_path_factory.mktemp("cellar")
    (folder / "pass").write_text("correct horse\n")
    config = folder / "vmcellar.yaml"
    config.write_text("tiers: {hot: repo}\nkey: {file: pass}\nstate: state\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
        repository = Repository.init(load_config(config))
    one, two, three = (random.Random(seed).randbytes(CHUNK) for seed in range(3))
    with ThreadPoolExecutor(2) as pool:
        first = back_up(repository, pool, [(0, one), (4 * CHUNK, two)], SIZE, vm="web1")
        second = back_up(repository, pool, [(0, CHUNK), (2 * CHUNK, three)], SIZE, first, vm="web1")
        other = back_up(repository, pool, [(0, two)], SIZE, vm="db1")
    repository.close()
    hole = bytes(CHUNK)
    disks = {
        first.id: one + hole * 3 + two + hole * 3,
        second.id: hole * 2 + three + hole + two + hole * 3,
        other.id: two + hole * 7,
    }
    return Cellar(folder, config, first, second, other, disks)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The points are of the year 2027, and a prune keeps what is of a later time than its clock has."""
    monkeypatch.setattr(retention, "CLOCKS_APART", 1e9)


def quick_cost(*given: int) -> Argon2Cost:
    """A cost for tests where none is given; what a slot asks for is kept."""
    return Argon2Cost(*(given or (64, 1, 1)))


@pytest.fixture
def cellar(cellar_template: Cellar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cellar:
    """A copy of the repository for one test, in the folder that the command runs in."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    shutil.copytree(cellar_template.folder, tmp_path, dirs_exist_ok=True)
    return replace(cellar_template, folder=tmp_path, config=tmp_path / "vmcellar.yaml")
