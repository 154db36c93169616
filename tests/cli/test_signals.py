"""Ctrl-C and SIGTERM, on a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

WAITS = """
import sys, time
from vmcellar.cli.signals import cancel_on_signals
with cancel_on_signals() as cancel:
    print("ready", flush=True)
    deadline = time.monotonic() + 60
    while not cancel.cancelled:
        if time.monotonic() > deadline: sys.exit(3)
        time.sleep(0.01)
    {then}
"""


AT_PROMPT = """
import sys
from vmcellar.cli.signals import cancel_on_signals, leave_on_term
from vmcellar.errors import CancelledError
try:
    with leave_on_term():
        try:
            with cancel_on_signals():
                pass
            print("ready", flush=True)
            sys.stdin.readline()
        finally:
            print("lease released")
except CancelledError as error:
    sys.exit(error.exit_code)
"""


def test_sigterm_at_a_prompt_closes_what_was_opened() -> None:
    with waiting("", AT_PROMPT) as process:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "lease released\n")


@contextmanager
def waiting(then: str, program: str = WAITS) -> Iterator[subprocess.Popen[str]]:
    """A process that waits to be cancelled, and then does `then`."""
    command = [sys.executable, "-c", program.format(then=then)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop(number: signal.Signals) -> None:
    with waiting("print('stopped cleanly'); sys.exit(130)") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "stopped cleanly\n")
    assert "stopping cleanly" in err


def test_the_second_leaves_at_once() -> None:
    busy = "print('busy', flush=True); import threading; threading.Event().wait(60); sys.exit(3)"
    with waiting(busy) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
