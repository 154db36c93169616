"""Throttling that all processes of a host share: a token bucket in a small file.

The file holds the instant up to which the bucket's bytes are spent, on the clock that counts since boot. Whoever takes
bytes moves it on under a lock that the kernel frees after a kill, and then sleeps on its own: no process waits for
another one that stands still.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

from vmcellar.boot import boot_id
from vmcellar.config.bandwidth import Bandwidth
from vmcellar.config.jobs import BackupJob
from vmcellar.policy.windows import seconds_left
from vmcellar.progress import CancelToken

BURST_SECONDS = 0.5
"""What may be taken at once after a pause: so short that a link's queue does not fill."""

NAP_SECONDS = 0.25
"""How often a sleeper looks whether it was cancelled."""

_RECORD = struct.Struct("<16sd")
"""The boot whose clock it is, and the instant on it."""


def rate_at(bandwidth: Bandwidth, moment: datetime) -> int | None:
    """Bytes per second that are allowed at `moment`, a local time; None: no limit."""
    for timed in bandwidth.timed:
        if seconds_left(timed.window, moment):
            return timed.rate
    return bandwidth.otherwise


def job_rate(job: BackupJob, moment: datetime) -> int | None:
    """The most that `job` may read per second at `moment`: by its bandwidth, and by what holds after its window."""
    rates = [] if job.bandwidth is None else [rate_at(job.bandwidth, moment)]
    if isinstance(job.after_window, int) and seconds_left(job.window, moment) == 0:
        rates.append(job.after_window)
    return min((rate for rate in rates if rate is not None), default=None)


class Throttle:
    """One bucket. Any thread of any process of this host that names the same file."""

    def __init__(
        self,
        path: Path,
        rate: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        boot: bytes = b"",
    ) -> None:
        """`rate` is asked each time, in bytes per second. Makes the file if it is missing."""
        self._rate, self._clock, self._sleep = rate, clock, sleep
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._boot = boot or UUID(boot_id()).bytes

    def take(self, count: int, cancel: CancelToken) -> None:
        """Return when `count` bytes may pass; CancelledError when stopped meanwhile."""
        rate = self._rate()
        if rate is None:
            return
        due = self._reserve(count, rate)
        while (left := due - self._clock()) > 0:
            cancel.check()
            self._sleep(min(left, NAP_SECONDS))

    def _reserve(self, count: int, rate: int) -> float:
        """Spend `count` bytes; the instant from which they may pass."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            now = self._clock()
            spent = self._spent(file, now)
            begin = max(spent, now - BURST_SECONDS)
            os.pwrite(file, _RECORD.pack(self._boot, begin + count / rate), 0)
            return begin + count / rate
        finally:
            os.close(file)

    def _spent(self, file: int, now: float) -> float:
        data = os.pread(file, _RECORD.size, 0)
        if len(data) != _RECORD.size:
            return now - BURST_SECONDS
        boot, spent = _RECORD.unpack(data)
        return float(spent) if boot == self._boot else now - BURST_SECONDS
