"""Durable steps of a process: counted, and at a chosen one the process is killed or the call fails.

A step is the instant before or after a call that changes what a restart finds: fsync (of files and folders), link,
rename, replace, unlink, mkdir, rmdir. Everything that vmcellar makes durable goes through these calls of `os`; only
SQLite's do not, and its file is a cache that may be deleted at any time.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tests.faults.powercut import Journal

CALLS = ("fsync", "fdatasync", "link", "rename", "replace", "unlink", "remove", "mkdir", "rmdir")

_rename, _mkdir = os.rename, os.mkdir  # the real ones, for what is done to the process

Act = Callable[[int, str, bool], None]
"""Called as act(step, name, before) at each step; steps count from 1, odd ones are before a call."""


class Steps:
    """Counts the steps of this process from `install` on. Any thread; there is no way back."""

    def __init__(self, act: Act = lambda _step, _name, _before: None, journal: Journal | None = None) -> None:
        self._act = act
        self._journal = journal
        self._lock = threading.Lock()
        self.names: list[str] = []

    def install(self) -> None:
        """Put the counter into every call."""
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            what = f"{name} {_shown(arguments[0])}"
            with self._lock:  # one at a time, so that the count of a run with threads is the same every time
                number = len(self.names) + 1
                self.names += [what, what]
                self._act(number, what, True)
                record = self._journal.before(name, arguments, options) if self._journal else None
                result = real(*arguments, **options)
                if self._journal and record:
                    self._journal.done(record)
                self._act(number + 1, what, False)
                return result

        return call


def _shown(target: object) -> str:
    if isinstance(target, int):
        target = Path(f"/proc/self/fd/{target}").resolve()
    return str(target)


def killed_at(step: int) -> Act:
    """SIGKILL to this process, which nothing can catch."""

    def act(number: int, _name: str, _before: bool) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def failing_at(step: int, code: int, *, from_then_on: bool) -> Act:
    """The call at this step fails with `code` before it does anything; `from_then_on`, so do all that write."""

    def act(number: int, name: str, before: bool) -> None:
        if not before:
            return
        if number == step or (from_then_on and number > step and _writes(name)):
            _fail(code)

    return act


def vanishing_at(step: int, folder: Path) -> Act:
    """At this step the folder is elsewhere, and an empty one lies in its place: a file system was unmounted."""

    def act(number: int, _name: str, _before: bool) -> None:
        if number == step:
            _rename(folder, away(folder))
            _mkdir(folder)

    return act


def away(folder: Path) -> Path:
    """Where `vanishing_at` moves a folder."""
    return folder.with_name(f"{folder.name}.away")


def come_back(folder: Path) -> bool:
    """Undo what `vanishing_at` did; whether it had done it."""
    if not away(folder).exists():
        return False
    shutil.rmtree(folder)
    away(folder).rename(folder)
    return True


def _writes(name: str) -> bool:
    return name.split(maxsplit=1)[0] in ("fsync", "fdatasync", "link", "rename", "replace", "mkdir")


def _fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))


ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS}
