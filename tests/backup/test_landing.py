"""The landing zone: its budget pushes back, its files hold what was put in, and a full file system is a clear error."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from vmcellar.backup.landing import LandingReader, LandingWriter, LandingZone
from vmcellar.errors import CancelledError, PermanentError
from vmcellar.progress import CancelToken


def test_what_is_landed_by_many_threads_is_read_back(tmp_path: Path) -> None:
    dice = random.Random(7)
    pieces = [dice.randbytes(dice.randrange(1, 200_000)) for _ in range(40)]
    zone = LandingZone(tmp_path / "landing" / "instance", 1 << 20)
    writer = zone.writer(zone.file("run", "vda", 0))
    places: dict[int, int] = {}

    def land(part: int) -> None:
        for i in range(part, len(pieces), 4):
            places[i] = writer.append(memoryview(pieces[i]))

    threads = [threading.Thread(target=land, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    with LandingReader(writer.path, writer.size) as reader:
        for i, piece in enumerate(pieces):
            buffer = memoryview(bytearray(len(piece)))
            reader.read_into(places[i], buffer)
            assert buffer == piece


def test_an_export_waits_until_the_zone_has_room_and_goes_on_when_it_has(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path, 100)
    first, second = zone.file("r", "vda", 0), zone.file("r", "vda", 1)
    zone.reserve(first, 80, CancelToken())
    entered = threading.Event()

    def wait() -> None:
        zone.reserve(second, 30, CancelToken())
        entered.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not entered.wait(0.2)
    zone.shrink(first, 60)
    assert entered.wait(60)
    waiter.join()


def test_a_waiting_export_can_be_cancelled(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path, 100)
    zone.reserve(zone.file("r", "vda", 0), 80, CancelToken())
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        zone.reserve(zone.file("r", "vda", 1), 30, cancel)


def test_a_segment_larger_than_the_budget_goes_alone(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path, 100)
    zone.reserve(zone.file("r", "vda", 0), 500, CancelToken())


def test_dropping_a_run_leaves_other_runs_alone(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path, 100)
    for run in ("a", "b"):
        writer = zone.writer(zone.file(run, "vda", 0))
        writer.append(memoryview(b"x"))
        writer.close()
    zone.drop_run("a")
    zone.drop_run("a")
    assert zone.runs() == ["b"]


def test_a_run_that_is_kept_for_later_keeps_its_files_and_nobody_waiting(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path, 100)
    kept = zone.file("kept", "vda", 0)
    zone.reserve(kept, 80, CancelToken())
    zone.writer(kept).close()
    zone.disown("kept")
    stop = CancelToken()
    stop.cancel()  # so that waiting is an error, not a hang
    zone.reserve(zone.file("other", "vda", 0), 80, stop)
    assert zone.runs() == ["kept"]


def test_dropping_a_run_gives_back_what_was_reserved_and_never_written(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path, 100)
    zone.reserve(zone.file("a", "vda", 0), 80, CancelToken())
    zone.drop_run("a")
    stop = CancelToken()
    stop.cancel()
    zone.reserve(zone.file("b", "vda", 0), 80, stop)


def test_a_missing_or_short_landing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vda.0000.land"
    with pytest.raises(PermanentError, match="cannot be read"):
        LandingReader(path, 10)
    path.write_bytes(b"12345")
    with pytest.raises(PermanentError, match="shorter"):
        LandingReader(path, 10)


def test_a_full_file_system_is_a_permanent_error_that_says_what_to_do(tmp_path: Path) -> None:
    class FullDevice(LandingWriter):
        """Writes to the kernel's own full device."""

        def __init__(self) -> None:
            super().__init__(tmp_path / "x.land")
            os.close(self._fd)
            self._fd = os.open("/dev/full", os.O_WRONLY)

    writer = FullDevice()
    with pytest.raises(PermanentError, match=r"landing zone is full") as caught:
        writer.append(memoryview(b"data"))
    assert "landing" in caught.value.hint
    writer.close()
