"""Honest timing of whole processes: wall seconds, CPU seconds of the process and its children, and of a QEMU it
uses.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """One run: `wall` seconds, `cpu` seconds of the tool, `qemu` CPU seconds of the guest's QEMU meanwhile."""

    wall: float
    cpu: float
    qemu: float
    output: str = ""


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has used so far; proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def timed(command: Sequence[str | Path], qemu: int, environment: dict[str, str] | None = None) -> Cost:
    """Run a command to its end; RuntimeError with its words when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    qemu_before = cpu_of(qemu)
    begun = time.monotonic()
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, cpu_of(qemu) - qemu_before, done.stdout)


@dataclass(frozen=True, slots=True)
class Medians:
    """Medians over the rounds, with the least and the most wall time, which tell how noisy the machine was."""

    wall: float
    least: float
    most: float
    cpu: float
    qemu: float


def medians(costs: Sequence[Cost]) -> Medians:
    """The medians of some runs."""
    walls = [cost.wall for cost in costs]
    return Medians(
        statistics.median(walls),
        min(walls),
        max(walls),
        statistics.median(cost.cpu for cost in costs),
        statistics.median(cost.qemu for cost in costs),
    )
