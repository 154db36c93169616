"""The command line as its users meet it: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmcellar.cli import main as cli_main


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
