"""Rates by time of day, and a bucket that processes share."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.config.bandwidth import Bandwidth
from vmcellar.config.jobs import BackupJob
from vmcellar.errors import CancelledError
from vmcellar.policy.bandwidth import BURST_SECONDS, Throttle, job_rate, rate_at
from vmcellar.progress import CancelToken

MIB = 1 << 20
RATE = 10 * MIB
DAY = {"08:00-18:00": "20MiB/s", "otherwise": "200MiB/s"}


class Clock:
    """A clock that only sleeping moves; any thread."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.time += seconds


def throttle(path: Path, clock: Clock, rate: int | None = RATE) -> Throttle:
    return Throttle(path / "bucket", lambda: rate, clock, clock.sleep)


@pytest.mark.parametrize(("hour", "rate"), [(7, 200), (8, 20), (17, 20), (18, 200)])
def test_the_rate_follows_the_time_of_day(hour: int, rate: int) -> None:
    assert rate_at(Bandwidth.model_validate(DAY), datetime(2026, 11, 28, hour, tzinfo=UTC)) == rate * MIB


@pytest.mark.parametrize(
    ("hour", "bandwidth", "rate"),
    [(23, None, None), (6, None, 5), (23, "2MiB/s", 2), (6, "2MiB/s", 2), (6, "9MiB/s", 5)],
)
def test_after_its_window_a_job_reads_on_no_faster_than_it_may(
    hour: int, bandwidth: str | None, rate: int | None
) -> None:
    settings = {"name": "a", "window": "22:00-06:00", "after_window": "5MiB/s", "bandwidth": bandwidth}
    found = job_rate(BackupJob.model_validate(settings), datetime(2026, 11, 28, hour, tzinfo=UTC))
    assert found == (None if rate is None else rate * MIB)


def test_outside_of_all_windows_there_is_no_limit() -> None:
    only_by_day = Bandwidth.model_validate({"08:00-18:00": "20MiB/s"})
    assert rate_at(only_by_day, datetime(2026, 11, 28, 20, tzinfo=UTC)) is None
    assert rate_at(Bandwidth.model_validate("1MiB/s"), datetime(2026, 11, 28, 20, tzinfo=UTC)) == MIB


@pytest.mark.parametrize("value", [{}, "fast", "0MiB/s", {"8-18": "1MiB/s"}, {"08:00-18:00": "1MiB"}])
def test_what_is_no_bandwidth_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"rate|window|bandwidth|size"):
        Bandwidth.model_validate(value)


def test_it_is_written_as_it_is_read() -> None:
    made = Bandwidth.model_validate(DAY)
    assert Bandwidth.model_validate(made.model_dump(mode="json")) == made


@given(st.lists(st.integers(1, 4 * MIB), min_size=1, max_size=60))
def test_over_time_no_more_passes_than_the_rate_and_one_burst(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[int]
) -> None:
    clock = Clock()
    made = throttle(tmp_path_factory.mktemp("bucket"), clock)
    for piece in pieces:
        made.take(piece, CancelToken())
    passed = sum(pieces)
    seconds = clock.time - 1000.0
    assert passed <= RATE * (seconds + BURST_SECONDS) + 1
    assert seconds <= passed / RATE + 0.3


def test_two_takers_share_one_bucket(tmp_path: Path) -> None:
    clock = Clock()
    one, other = throttle(tmp_path, clock), throttle(tmp_path, clock)
    for _ in range(20):
        one.take(MIB, CancelToken())
        other.take(MIB, CancelToken())
    assert clock.time - 1000.0 == pytest.approx(40 * MIB / RATE - BURST_SECONDS, abs=0.3)


def test_without_a_rate_nothing_waits(tmp_path: Path) -> None:
    clock = Clock()
    throttle(tmp_path, clock, None).take(1 << 40, CancelToken())
    assert clock.time == 1000.0


def test_who_waits_can_be_stopped(tmp_path: Path) -> None:
    clock, cancel = Clock(), CancelToken()
    made = throttle(tmp_path, clock)
    made.take(50 * MIB, cancel)
    cancel.cancel()
    with pytest.raises(CancelledError):
        made.take(50 * MIB, cancel)


def test_a_file_of_an_earlier_boot_delays_nobody(tmp_path: Path) -> None:
    clock = Clock()
    clock.time = 1e6
    Throttle(tmp_path / "bucket", lambda: RATE, clock, clock.sleep, b"a" * 16).take(100 * MIB, CancelToken())
    clock.time = 5.0
    Throttle(tmp_path / "bucket", lambda: RATE, clock, clock.sleep, b"b" * 16).take(MIB, CancelToken())
    assert clock.time == 5.0
