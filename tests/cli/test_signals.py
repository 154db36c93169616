"""Ctrl-C and SIGTERM, on a real process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WAITS = """
import sys
from vmcellar.cli.signals import cancel_on_signals
with cancel_on_signals() as cancel:
    print("ready", flush=True)
    if not cancel.wait(60): sys.exit(3)
    {then}
"""


def start(then: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS.format(then=then)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop(number: signal.Signals) -> None:
    process = start("print('stopped cleanly'); sys.exit(130)")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "stopped cleanly\n")
    assert "stopping cleanly" in err


def test_the_second_leaves_at_once() -> None:
    process = start("print('busy', flush=True); import threading; threading.Event().wait(60); sys.exit(3)")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
