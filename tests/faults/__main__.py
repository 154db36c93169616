"""`python -m tests.faults NAME... [--mode MODE] [--every N]`: have commands die or fail at each of their steps."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.faults.cellar import prepare_process, warm_up
from tests.faults.mounts import FULL, READ_ONLY, run_mounted
from tests.faults.scenarios import SCENARIOS
from tests.faults.trial import KILL, POWER_CUT, VANISH, TrialError, run

MODES = (KILL, "EIO-once", "EIO", "ENOSPC", "EROFS", VANISH, POWER_CUT, FULL, READ_ONLY)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where fsync costs nothing: what is killed here is the process, not the machine."""
    with tempfile.TemporaryDirectory(prefix="vmcellar-faults-", dir="/dev/shm") as folder:
        yield Path(folder)


def one(name: str, mode: str, every: int) -> int:
    """Try one command and print its line; the exit code."""
    started = time.monotonic()
    try:
        with scratch() as folder:
            if mode in (FULL, READ_ONLY):
                outcome = run_mounted(SCENARIOS[name], folder, mode)
            else:
                outcome = run(SCENARIOS[name], folder, mode, every)
    except TrialError as error:
        print(f"HARM {error}", flush=True)
        return 1
    print(f"{outcome}, {time.monotonic() - started:.1f} s", flush=True)
    return 0


def several(names: Sequence[str], mode: str, every: int) -> int:
    """As many commands at once as there are cores, a process each; 1 when any did harm."""
    running: set[int] = set()
    failed = 0
    for name in names:
        if len(running) >= (os.cpu_count() or 1):
            failed |= _wait(running)
        pid = os.fork()
        if pid == 0:
            os._exit(one(name, mode, every))
        running.add(pid)
    while running:
        failed |= _wait(running)
    return failed


def _wait(running: set[int]) -> int:
    pid, status = os.wait()
    running.discard(pid)
    return int(status != 0)


def main() -> int:
    """One line for each command, exit code 1 when any did harm."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENARIOS)}; all")
    parser.add_argument("--mode", choices=MODES, default=KILL, help="how: die, or how the system's calls fail")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th step only")
    arguments = parser.parse_args()
    logging.disable()
    prepare_process()
    with scratch() as folder:
        warm_up(folder)
    return several(arguments.names or list(SCENARIOS), arguments.mode, arguments.every)


if __name__ == "__main__":
    sys.exit(main())
