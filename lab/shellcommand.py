"""One way to run a helper program: a list of arguments, both pipes drained, a time limit, an error that quotes it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


class LabError(RuntimeError):
    """The laboratory could not do what was asked; the message says what to look at or install."""


def call(arguments: Sequence[str | Path], *, seconds: float = 120, data: bytes | None = None) -> str:
    """Run a program to its end and return its standard output as text.

    `seconds` is the time limit. LabError on a missing program, a time-out or an exit code other than 0, with the last
    lines that the program wrote.
    """
    words = [str(word) for word in arguments]
    try:
        done = subprocess.run(words, input=data, capture_output=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is not installed; `./run setup` as root installs it") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(words)} took longer than {seconds:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-800:]
        raise LabError(f"{' '.join(words)} ended with {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")
