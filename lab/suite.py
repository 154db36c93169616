"""The whole test suite as two processes side by side: `./run suite [ARGS]`.

Tests that need libvirt or the tests' Prefect server wait for these most of the time. All others run beside them, with
less right to the processors, so that nothing in a guest comes late for them (`--part` in tests/conftest.py; each is in
exactly one part). What the first part prints is shown as it comes, what the other prints follows; then the tests of
both are counted. ARGS go to both. Exit code: 0 when both passed, else 1.

Ctrl-C, SIGTERM, SIGHUP and the death of this process each interrupt both parts as Ctrl-C does pytest: fixtures tidy up.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO
from xml.etree import ElementTree as ET

PARTS = ("machine", "rest")
_BEFORE = {"machine": (), "rest": ("nice", "-n", "5")}
_AFTER = {"machine": (), "rest": ("-o", "cache_dir=.cache/pytest-rest")}
_INTERRUPTED_WITH_US = ("setpriv", "--pdeathsig", "INT")


@dataclass
class Part:
    """One running pytest, in a session of its own: a terminal's Ctrl-C reaches it through us, once."""

    name: str
    folder: Path
    arguments: Sequence[str]
    output: IO[bytes] | None
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        pytest = (sys.executable, "-m", "pytest", f"--part={self.name}", f"--junit-xml={self._result}")
        self.process = subprocess.Popen(
            [*_INTERRUPTED_WITH_US, *_BEFORE[self.name], *pytest, *_AFTER[self.name], *self.arguments],
            stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output, start_new_session=True,
        )  # fmt: skip

    def wait(self) -> None:
        """Until it has ended."""
        self.process.wait()
        self.seconds = time.monotonic() - self.started

    def interrupt(self) -> None:
        """As Ctrl-C; nothing when it has ended."""
        self.process.send_signal(signal.SIGINT)

    def counted(self) -> tuple[int, str]:
        """How many tests it ran, and a line about them; 0 when it ended without a result."""
        try:
            (suite,) = ET.parse(self._result).getroot()
        except (OSError, ET.ParseError):
            return 0, f"{self.name}: no result, pytest ended with {self.process.returncode}"
        tests, failures, errors, skipped = (
            int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")
        )
        minutes, seconds = divmod(round(self.seconds), 60)
        shown = f"{tests} tests, {failures} failed, {errors} errors, {skipped} skipped, {minutes}:{seconds:02d} minutes"
        return tests, f"{self.name}: {shown}, exit code {self.process.returncode}"

    @property
    def _result(self) -> Path:
        return self.folder / f"{self.name}.xml"


def main(arguments: Sequence[str]) -> int:
    """Run both parts to their ends; the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupt)
    with tempfile.TemporaryDirectory(prefix="vmcellar-suite-") as name:
        folder = Path(name)
        with (folder / "output").open("w+b") as output:
            parts = _run(folder, arguments, output)
            output.seek(0)
            sys.stdout.buffer.write(output.read())
        counts, lines = zip(*(part.counted() for part in parts), strict=True)
    print(*lines, f"together: {sum(counts)} tests", sep="\n", flush=True)
    return int(not all(counts) or any(part.process.returncode for part in parts))


def _run(folder: Path, arguments: Sequence[str], output: IO[bytes]) -> list[Part]:
    parts: list[Part] = []
    try:
        parts += [Part(name, folder, arguments, None if name == PARTS[0] else output) for name in PARTS]
        for part in parts:
            part.wait()
    except KeyboardInterrupt:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second one would end us before what the first one began
        for part in parts:
            part.interrupt()
        for part in parts:
            part.wait()
    return parts


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
