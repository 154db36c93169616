"""Start `tests.proof.runner` and read what it says; both pipes are drained (pitfall 29)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.proof.cellar import Cellar

SECONDS = 60


@dataclass(frozen=True, slots=True)
class Ran:
    """An ended runner: exit code (negative: the signal that killed it), its report if it lived to write one."""

    code: int
    report: dict[str, Any]
    errors: str

    @property
    def struck(self) -> bool:
        """Whether the place where it was to be stopped was reached."""
        return "struck" in self.errors


def start(cellar: Cellar, vm: str, *options: str) -> subprocess.Popen[str]:
    """A runner that backs up `vm`."""
    command = [sys.executable, "-m", "tests.proof.runner", str(cellar.file), vm, *options]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command, cwd=root, env={**os.environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> Ran:
    """Wait for a runner's end."""
    try:
        out, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        raise AssertionError(f"the backup did not end within {SECONDS} s: {errors}") from None
    lines = out.strip().splitlines()
    return Ran(process.returncode, json.loads(lines[-1]) if lines else {}, errors)


def run(cellar: Cellar, vm: str, *options: str) -> Ran:
    """Start one and wait for its end."""
    return finish(start(cellar, vm, *options))
