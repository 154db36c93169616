"""A window ends while a real guest is read and writes: the backup is stopped, or slowed down, as the job has it.

The clock is real. This host's time zone is chosen so that the window's end comes while the guest is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from flows.backup import backup_job
from flows.parameters import BackupJob
from lab import reference
from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.paths import vm_folder
from tests.flows.conftest import CellarFactory
from tests.flows.seen import Seen
from tests.proof.cellar import MIB, Cellar, Disks, at_instant, job_runs
from vmcellar.backup.model import PointSummary
from vmcellar.errors import PermanentError
from vmcellar.policy.bandwidth import Throttle
from vmcellar.progress import CancelToken

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect, pytest.mark.guest]

DISKS = (DiskSpec("vda", 32 * MIB, ext4=True), DiskSpec("vdb", 16 * MIB), DiskSpec("vdc", 8 * MIB))
CHANGED = 9 * MIB
CRAWL, FAST, SLOW = 128 << 10, 1 << 20, 900 << 10
"""Bytes per second. At the first it takes more than a minute to read what changed."""


@pytest.fixture(scope="module")
def awake(libvirt_daemons: str) -> Iterator[LabGuest]:
    """A booted guest with its agent."""
    assert libvirt_daemons
    with vm_folder("windows") as folder, LabGuest(folder, DISKS) as guest:
        guest.start()
        yield guest


@pytest.fixture
def windowed(seen: Seen, make_cellar: CellarFactory, awake: LabGuest) -> Cellar:
    """A cellar with a first point, after which much has changed."""
    assert seen
    jobs = [
        {"name": "stopped", "window": "02:00-03:00", "bandwidth": f"{CRAWL}B/s", "after_window": "stop"},
        {"name": "slowed", "window": "02:00-03:00", "bandwidth": f"{FAST}B/s", "after_window": f"{SLOW}B/s"},
        {"name": "free"},
    ]
    cellar = make_cellar(backups=[{**each, "domains": [awake.name]} for each in jobs])
    back_up(cellar, awake, "free")
    awake.write("vdb", 0, CHANGED, seed=1)
    return cellar


def back_up(cellar: Cellar, guest: LabGuest, job: str) -> tuple[PointSummary, Disks]:
    """The point, and its instant, copied out of its own job; from then on until its end the guest writes."""
    found: Disks = {}

    def at_work() -> None:
        nonlocal found
        guest.start_writer("vdc")
        found = reference.of_job(guest.domain, cellar.folder())

    request = BackupJob(config=str(cellar.file), job=job, scheduled=job != "free")
    try:
        with at_instant(at_work):
            (point,) = asyncio.run(backup_job(request))
    finally:
        guest.stop_writer()
    return point, found


def it_ends_in(seconds: float, patch: pytest.MonkeyPatch) -> None:
    """From now on it is 03:00 in this host's zone in so many seconds."""
    now = datetime.now(UTC)
    three = now.replace(hour=3, minute=0, second=0, microsecond=0)
    zone = timezone(three - timedelta(seconds=seconds) - now)
    for module in ("tasks.turns", "vmcellar.engine"):
        patch.setattr(f"{module}.local_zone", lambda: zone)


def assert_next_is_complete(cellar: Cellar, guest: LabGuest) -> None:
    """The one after it, which takes all that was left, and what the guest wrote."""
    point, instant = back_up(cellar, guest, "free")
    assert point.kind == "incremental", point.reason
    cellar.assert_restores(point.id, instant)
    cellar.assert_nothing_left(guest)


def test_stopped_the_guest_is_let_go_and_the_next_run_is_complete(
    seen: Seen, windowed: Cellar, awake: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    back_up(windowed, awake, "free")
    awake.write("vdb", 0, CHANGED, seed=2)
    enough = 2 + 2 * (time.monotonic() - begun)  # for a run to begin to read, however busy this machine is
    with monkeypatch.context() as patch:
        it_ends_in(enough, patch)
        with pytest.raises(PermanentError, match="stopped while it was read: the window 02:00-03:00 of job stopped"):
            back_up(windowed, awake, "stopped")
    state = seen.flow_run("backup job stopped").state
    assert state is not None
    assert state.name == "Failed"
    windowed.assert_let_go(awake)
    assert awake.agent("guest-fsfreeze-status") == "thawed"
    assert len(windowed.points(awake)) == 2
    assert_next_is_complete(windowed, awake)


def test_slowed_down_it_is_read_to_its_end(windowed: Cellar, awake: LabGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int | None, int]] = []
    take = Throttle.take

    def noting(throttle: Throttle, count: int, cancel: CancelToken) -> None:
        if len(taken) == 3:
            it_ends_in(1, patch)
        taken.append((throttle._rate(), count))
        take(throttle, count, cancel)

    with monkeypatch.context() as patch:
        patch.setattr(Throttle, "take", noting)
        it_ends_in(1800, patch)
        point, instant = back_up(windowed, awake, "slowed")
    rates = [rate for rate, _ in taken]
    assert (rates[0], rates[-1]) == (FAST, SLOW), "fast until it ended, slow from then on"
    assert set(rates) == {FAST, SLOW}
    assert point.bytes_read >= sum(count for _, count in taken) >= CHANGED
    windowed.assert_restores(point.id, instant)
    assert not job_runs(awake)
    assert awake.agent("guest-fsfreeze-status") == "thawed"
    assert_next_is_complete(windowed, awake)
