"""Entering the process with all standard streams, and leaving it without what libraries do when it ends.

Prefect's workers for events and logs hold a process up at its end for as long as they try to reach a server: minutes,
where that is gone. Everything of ours is durable and let go by then.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

_hurry = threading.Event()


def open_closed_streams() -> None:
    """Open those of stdin, stdout and stderr that the caller closed on the null device.

    Else the next file that is opened gets the number of one, and whatever a program of ours prints goes into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    null = Path(os.devnull)
    sys.stdin = null.open(encoding="utf-8") if sys.stdin is None else sys.stdin
    sys.stdout = null.open("w", encoding="utf-8") if sys.stdout is None else sys.stdout
    sys.stderr = null.open("w", encoding="utf-8") if sys.stderr is None else sys.stderr


def speak_utf8() -> None:
    """Begin anew in Python's UTF-8 mode where the locale's encoding is another (PEP 540).

    The names of VMs are UTF-8, in libvirt, on the command line and in file names, whatever the locale says.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # for what is started from here
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  (ourselves)


class OutputLostError(OSError):
    """Stdout could not be written; another file that is full has errors of its own."""


class _Output(io.TextIOWrapper):
    """Stdout whose errors can be told from those of other files. What its encoding does not have is escaped."""

    def write(self, text: str, /) -> int:
        """See TextIOWrapper."""
        try:
            return super().write(text)
        except OSError as error:
            raise OutputLostError(error.errno, error.strerror) from error

    def flush(self) -> None:
        """See TextIOWrapper."""
        try:
            super().flush()
        except OSError as error:
            raise OutputLostError(error.errno, error.strerror) from error


def guard_output() -> None:
    """Escape what the encodings of stdout and stderr do not have, and tell errors of stdout from others."""
    out = sys.stdout
    if type(out) is io.TextIOWrapper:
        options = (out.encoding, "backslashreplace", None, out.line_buffering, out.write_through)
        sys.stdout = _Output(out.detach(), *options)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def flush_output() -> OutputLostError | None:
    """Write what stdout still holds; the error, if that fails."""
    try:
        sys.stdout.flush()
    except OutputLostError as error:
        return error
    return None


def drop_output() -> None:
    """Lead stdout, which cannot be written, to the null device: Python would complain once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def hurry() -> None:
    """From now on the process leaves at once when the command has ended."""
    _hurry.set()


def leave(stop: SystemExit) -> None:
    """End the process with the exit code of `stop`, if it is to leave at once."""
    if _hurry.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
