"""One command of the operator's on this host: in a process group of its own, with a limit, and nothing of it left over.

What the command leaves running in its group when it ends is killed; a service that is to live on is started through
systemd, or with setsid(1).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from vmcellar.progress import CancelToken

KEPT = 16 << 10
"""Bytes of output that are kept: the last ones."""
GRACE_SECONDS = 2.0
"""Between the request to end and the kill."""
_LOOK_SECONDS = 0.1
_READ = 1 << 16


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: `problem` is empty when its exit code was 0. `output` is both streams, as they came."""

    problem: str
    output: str
    seconds: float


def run_command(line: str, environment: Mapping[str, str], limit: float, cancel: CancelToken) -> Ended:
    """Run `line` with /bin/sh, with no other environment, no input, and / as its folder.

    After `limit` seconds, or when stopped, its whole process group gets SIGTERM, and SIGKILL two seconds later. Any
    thread; raises nothing but what a host without /bin/sh or free processes gives (OSError).
    """
    started = time.monotonic()
    ours, theirs = os.pipe()
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", line],
            env=dict(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(theirs)
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise
    watched = _Watched(process.pid, ours)
    try:
        why = watched.until_end(started + limit, cancel, limit)
    finally:
        watched.clear()
        code = process.wait()
        os.close(ours)
    return Ended(why or _problem(code), watched.text(), time.monotonic() - started)


def _problem(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" if code else ""


class _Watched:
    """A process group whose output is read until its leader ends. The leader is not reaped before its group is gone, so
    that the group's number cannot be another's.
    """

    def __init__(self, leader: int, pipe: int) -> None:
        self._leader = leader
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        self._open = True
        self._kept = b""

    def until_end(self, deadline: float, cancel: CancelToken, limit: float) -> str:
        """Return when the leader ended; why it was made to end, or empty."""
        while not self._ended():
            if cancel.cancelled:
                return self._stop("stopped on request")
            if time.monotonic() >= deadline:
                return self._stop(f"killed after its limit of {limit:.0f} s")
            self._read(_LOOK_SECONDS)
        return ""

    def clear(self) -> None:
        """Kill what is left of the group, and take the last of its output."""
        self._signal(signal.SIGKILL)
        while self._open and self._read(0.0):
            pass

    def text(self) -> str:
        """What is kept of the output."""
        return self._kept.decode(errors="replace").strip()

    def _stop(self, why: str) -> str:
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while not self._ended() and time.monotonic() < deadline:
            self._read(_LOOK_SECONDS)
        return why

    def _ended(self) -> bool:
        return os.waitid(os.P_PID, self._leader, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._leader, number)  # the leader, if only as a zombie, is there

    def _read(self, seconds: float) -> bool:
        """Take what comes within `seconds`; whether there was any."""
        if not self._open:
            time.sleep(seconds)
            return False
        if not self._poll.poll(seconds * 1000):
            return False
        data = os.read(self._pipe, _READ)
        self._open = bool(data)
        self._kept = (self._kept + data)[-KEPT:]
        return True
