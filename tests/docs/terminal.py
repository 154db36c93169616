"""A terminal of the laboratory: types what a page says, with its names and places turned into the laboratory's.

A line of `vmcellar` alone runs in this process, through the real entry; whatever a shell has to do, and whatever runs
until Ctrl-C, is a process.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.waiting import wait_for
from tests.docs.pages import ROOT
from tests.docs.program import FOLDER, places
from vmcellar.cli import main as cli_main

_PLACES = re.compile(
    r"(?<![\w:/.])(?<!\bls )(?<!\bget )(?<!\btar )"  # a path in a guest stays what it is
    r"(?=/(?:etc|srv|var|root|run|mnt|opt/vmcellar|usr/local|dev/vg0)/)"
)
_SHELL = re.compile(r"[|&;<>`*]|\$\(|^(?!vmcellar )|--install-completion")
NOBODY = "http://127.0.0.1:1/api"
"""A Prefect server that does not answer."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one command gave."""

    code: int
    out: str
    err: str = ""

    @property
    def all(self) -> str:
        """Both streams."""
        return self.out + self.err


@dataclass
class Terminal:
    """`folder` stands for the root of the file system; `words` turns words of a page into those of the laboratory."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    words: dict[str, str] = field(default_factory=dict)
    _lasting: list[tuple[str, subprocess.Popen[str], Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """A home to type in, and programs found before all others."""
        for name in ("root", "bin", "etc", "srv", "run", "mnt", "var/lib/libvirt/images", "usr/local/bin", "opt"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        program = self.folder / "bin" / "vmcellar"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.docs.program "$@"\n')
        program.chmod(0o755)
        self.monkeypatch.chdir(self.home)
        for name, value in places(self.folder).items():
            self.monkeypatch.setattr(name, value)
        for name, text in {
            "PREFECT_API_URL": NOBODY,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            FOLDER: str(self.folder),
        }.items():
            self.monkeypatch.setenv(name, text)

    @property
    def home(self) -> Path:
        """Where everything is typed."""
        return self.folder / "root"

    def real(self, text: str) -> str:
        """What is typed for a text of a page."""
        text = _PLACES.sub(str(self.folder), text)
        for word, other in self.words.items():
            text = re.sub(rf"(?<![\w/]){re.escape(word)}(?!\w)", other, text)
        return text

    def type(self, text: str, answers: Sequence[str] = ()) -> Said:
        """Type one command or a short script; with `answers` somebody sits at the terminal and types them."""
        text = self.real(text)
        if _SHELL.search(text):
            return self._shell(text)
        self.monkeypatch.setattr(sys, "argv", shlex.split(text))
        self.capsys.readouterr()
        with self._sits(answers), pytest.raises(SystemExit) as stopped:
            cli_main.main()
        captured = self.capsys.readouterr()
        return Said(int(stopped.value.code or 0), captured.out, captured.err)

    def _shell(self, text: str) -> Said:
        done = subprocess.run(
            ["bash", "-e", "-c", f"{text}\n:"],  # with more to do, it stays the parent of what it starts
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def _sits(self, answers: Sequence[str]) -> Iterator[None]:
        """Standard input is a real terminal in which the answers lie already; without answers nobody is there."""
        with self.monkeypatch.context() as patch:
            if not answers:
                with Path(os.devnull).open() as nothing:
                    patch.setattr(sys, "stdin", nothing)
                    yield
                return
            master, slave = pty.openpty()
            try:
                os.write(master, "".join(f"{self.real(answer)}\n" for answer in answers).encode())
                with os.fdopen(slave) as terminal:
                    patch.setattr(sys, "stdin", terminal)
                    yield
            finally:
                os.close(master)

    def begin(self, text: str, until: str) -> Said:
        """Type what runs until Ctrl-C, in a terminal of its own; back when it has said what `until` matches."""
        log = self.home / f".terminal-{len(self._lasting)}"
        with log.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self.real(text)}"],
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                text=True,
            )
        self._lasting.append((text, process, log))

        def found() -> bool:
            assert process.poll() is None, f"{text} ended by itself: {log.read_text()}"
            return re.search(until, log.read_text()) is not None

        wait_for(found, f"{text} to say {until}", seconds=60)
        return Said(0, log.read_text())

    def press_ctrl_c(self) -> None:
        """Ctrl-C in all such terminals; each must end with 0."""
        ended = []
        for text, process, log in self._lasting:
            process.send_signal(signal.SIGINT)
            ended.append((text, process.wait(60), log.read_text()))
        self._lasting.clear()
        assert [each for each in ended if each[1] or "Traceback" in each[2]] == []

    def close(self) -> None:
        """Leave no process, whatever happened."""
        for _, process, _ in self._lasting:
            process.kill()
            process.wait()
