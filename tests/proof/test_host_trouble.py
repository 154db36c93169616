"""What happens to the host during backups: daemons restart, space runs out, two backups meet; the guest is unharmed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from lab import daemons
from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.waiting import wait_for
from tests.proof import subprocesses
from tests.proof.cellar import MIB, Cellar, at_instant, job_runs
from tests.proof.conftest import CellarFactory
from tests.tiers.conftest import mounted
from vmcellar.backup import stages
from vmcellar.backup.model import CompressResult, ExportResult
from vmcellar.engine import Engine
from vmcellar.errors import PermanentError, TransientError

pytestmark = pytest.mark.libvirt

GIB = 1 << 30
MEMORY_LIMIT = 512 * MIB


def fill(guest: LabGuest, length: int = 4 * MIB, seed: int = 0) -> None:
    """Seeded bytes from the first megabyte of each disk on."""
    for number, target in enumerate(guest.disks):
        guest.poke(target, MIB, length, seed=seed + number)


def assert_unharmed(guest: LabGuest) -> None:
    """No job holds the guest, and it writes."""
    assert not job_runs(guest)
    for target in guest.disks:
        guest.poke(target, 0, MIB, seed=77)


def test_libvirtd_restarts_in_the_middle(quiet_guest: LabGuest, cellar: Cellar) -> None:
    """The bytes come from QEMU itself, so the reading goes on; the next call to libvirt connects anew."""
    fill(quiet_guest)
    expected = cellar.reference(quiet_guest)

    def restart() -> None:
        daemons.restart_libvirtd()
        quiet_guest.connection = libvirt.open(daemons.URI)
        quiet_guest.domain = quiet_guest.connection.lookupByName(quiet_guest.name)
        assert job_runs(quiet_guest)

    with at_instant(restart):
        summary = cellar.backup(quiet_guest)
    cellar.assert_restores(summary.id, expected)
    assert_unharmed(quiet_guest)
    following, expected = cellar.backup_with_reference(quiet_guest)
    assert following.kind == "incremental"
    cellar.assert_restores(following.id, expected)
    cellar.assert_nothing_left(quiet_guest)


def test_a_second_backup_of_the_same_vm_is_refused(
    quiet_guest: LabGuest, cellar: Cellar, make_cellar: CellarFactory
) -> None:
    """By the lock on this host, and by libvirt's job where the lock is another one's; the first is not disturbed."""
    fill(quiet_guest)
    expected = cellar.reference(quiet_guest)
    first = subprocesses.start(cellar, quiet_guest.name, *stop_at("vmcellar.backup.stages:export"))
    try:
        wait_for(lambda: is_stopped(first.pid), "the first backup to stand still in the middle", seconds=60)
        with pytest.raises(TransientError, match=f"another vmcellar process .pid {first.pid}."):
            cellar.backup(quiet_guest)
        with pytest.raises(TransientError, match="another backup job runs on this VM"):
            make_cellar("of another host").backup(quiet_guest)
    finally:
        os.kill(first.pid, signal.SIGCONT)
        ran = subprocesses.finish(first)
    assert ran.code == 0, ran
    cellar.assert_restores(ran.report["point"], expected)
    cellar.assert_nothing_left(quiet_guest)


def stop_at(place: str) -> list[str]:
    """The runner stops itself before the named function, and goes on at SIGCONT."""
    return ["--at", place, "--signal", "SIGSTOP"]


def is_stopped(pid: int) -> bool:
    """Whether a process stands still because of SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_landing_zone_full(quiet_guest: LabGuest, cellar: Cellar) -> None:
    first = cellar.backup(quiet_guest)
    fill(quiet_guest)
    with mounted(cellar.base / "landing-small", "3m") as small:
        tight = cellar.with_settings(landing={"dir": str(small), "direct": 0})
        with pytest.raises(PermanentError, match="the landing zone is full") as raised:
            tight.backup(quiet_guest)
        assert "landing" in raised.value.hint
        assert_unharmed(quiet_guest)
        tight.assert_let_go(quiet_guest)
    assert [point.id for point in cellar.points(quiet_guest)] == [first.id]
    following, expected = cellar.backup_with_reference(quiet_guest)
    assert (following.kind, following.parent) == ("incremental", first.id)
    cellar.assert_restores(following.id, expected)
    cellar.assert_nothing_left(quiet_guest)


@pytest.mark.parametrize("missing", [12 * MIB, 2 * MIB, 4096], ids=["compress", "place", "commit"])
def test_repository_full(quiet_guest: LabGuest, vm_tmp: Path, missing: int) -> None:
    """Almost no room, room for most of the packs, and room for all but the last object, the point."""
    fill(quiet_guest)
    needed = space_of_a_backup(quiet_guest, vm_tmp / "twin")
    base = vm_tmp / "cellar"
    base.mkdir()
    with mounted(base / "repository", "64m") as repository:
        cellar = Cellar(base)
        ballast = repository / "ballast"
        take_space(ballast, leave=needed - missing)
        with pytest.raises(PermanentError) as raised:
            cellar.backup(quiet_guest)
        assert str(repository) in raised.value.message
        assert raised.value.hint
        assert_unharmed(quiet_guest)
        cellar.assert_let_go(quiet_guest)
        assert cellar.points(quiet_guest) == []
        ballast.unlink()
        following, expected = cellar.backup_with_reference(quiet_guest)
        cellar.assert_restores(following.id, expected)
        cellar.assert_nothing_left(quiet_guest)


def space_of_a_backup(guest: LabGuest, base: Path) -> int:
    """What a first backup of the guest takes in a repository, in bytes, by backing it up into another one."""
    base.mkdir()
    with mounted(base / "repository", "64m") as repository:
        twin = Cellar(base)
        before = os.statvfs(repository)
        twin.backup(guest)
        return (before.f_bavail - os.statvfs(repository).f_bavail) * before.f_frsize


def take_space(path: Path, *, leave: int) -> None:
    """A file that takes a file system's space but for `leave` bytes."""
    disk = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - leave)


@pytest.fixture
def tight_scratch(cellar: Cellar) -> Iterator[Path]:
    """A file system of 24 MiB for scratch files; a guest that starts after it sees it."""
    with mounted(cellar.base / "scratch-small", "24m") as small:
        yield small


@pytest.fixture
def busy_guest(tight_scratch: Path, make_guest: Callable[..., LabGuest]) -> LabGuest:
    """A guest with 28 MiB of data to overwrite, more than the scratch files can take."""
    assert tight_scratch
    guest = make_guest([DiskSpec("vda", 32 * MIB)])
    guest.start(paused=True)
    guest.poke("vda", 0, 28 * MIB, seed=1)
    return guest


def test_scratch_nearly_full_the_backup_gives_up_before_the_guest_suffers(
    busy_guest: LabGuest, tight_scratch: Path, cellar: Cellar
) -> None:
    """Pitfall 11: what the guest overwrites goes to the scratch files; once they are full, its writes would fail."""
    tight = cellar.with_settings(scratch=str(tight_scratch))
    with (
        pytest.raises(PermanentError, match="overwrites faster than it is read") as raised,
        at_instant(lambda: busy_guest.poke("vda", 0, 22 * MIB, seed=2)),
    ):
        tight.backup(busy_guest)
    assert str(tight_scratch) in raised.value.message
    busy_guest.poke("vda", 0, 28 * MIB, seed=3)
    assert_unharmed(busy_guest)
    tight.assert_let_go(busy_guest)
    following, expected = tight.backup_with_reference(busy_guest)
    cellar.assert_restores(following.id, expected)


def test_scratch_fills_while_an_export_waits_for_the_landing_zone(
    busy_guest: LabGuest, tight_scratch: Path, cellar: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that waits for room reads nothing, but the guest goes on writing."""
    tight = cellar.with_settings(
        scratch=str(tight_scratch), limits={"segment": MIB}, landing={"budget": 2 * MIB, "direct": 0}
    )
    compress, export = stages.compress, stages.export
    gave_up = threading.Event()

    in_time: list[bool] = []

    def slow(*arguments: Any) -> CompressResult:
        in_time.append(gave_up.wait(60))
        return compress(*arguments)

    def noting(engine: Engine, run: str, target: str, segment: int, *rest: Any) -> ExportResult:
        if segment == 1:
            busy_guest.poke("vda", 0, 22 * MIB, seed=2)
        try:
            return export(engine, run, target, segment, *rest)
        except PermanentError:
            gave_up.set()
            raise

    monkeypatch.setattr(stages, "compress", slow)
    monkeypatch.setattr(stages, "export", noting)
    with pytest.raises(PermanentError, match="overwrites faster than it is read"):
        tight.backup(busy_guest)
    assert in_time == [True], "it gave up while it waited, not when the landing zone had room again"
    assert_unharmed(busy_guest)
    tight.assert_let_go(busy_guest)


def test_the_vm_is_released_before_compression_ends(
    quiet_guest: LabGuest, make_cellar: CellarFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compression here ends only once the job is gone: a release that waited for one would never come."""
    cellar = make_cellar(limits={"segment": MIB})
    fill(quiet_guest)
    expected = cellar.reference(quiet_guest)
    order: list[str] = []
    compress, release = stages.compress, stages.release

    def patient(*arguments: Any) -> CompressResult:
        result = compress(*arguments)
        wait_for(lambda: "released" in order, "the VM to be released while compression goes on", seconds=60)
        assert not job_runs(quiet_guest)
        order.append("compressed")
        return result

    def noting(*arguments: Any) -> Any:
        result = release(*arguments)
        order.append("released")
        return result

    monkeypatch.setattr(stages, "compress", patient)
    monkeypatch.setattr(stages, "release", noting)
    summary = cellar.backup(quiet_guest)
    assert order[0] == "released"
    assert order.count("compressed") >= 6
    cellar.assert_restores(summary.id, expected)


def test_a_failed_backup_releases_the_vm_before_its_compressions_end(
    quiet_guest: LabGuest, make_cellar: CellarFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cellar = make_cellar(limits={"segment": MIB})
    fill(quiet_guest)
    compress, export = stages.compress, stages.export
    compressing = threading.Event()
    in_time: list[bool] = []

    def patient(*arguments: Any) -> CompressResult:
        compressing.set()
        wait_for(lambda: not job_runs(quiet_guest), "the VM to be released at once", seconds=60)
        in_time.append(True)
        return compress(*arguments)

    def failing(engine: Engine, run: str, target: str, segment: int, *rest: Any) -> ExportResult:
        if (target, segment) == ("vda", 1):
            assert compressing.wait(60), "the first segment is compressed meanwhile"
            raise PermanentError("the second segment is unlucky")
        return export(engine, run, target, segment, *rest)

    monkeypatch.setattr(stages, "compress", patient)
    monkeypatch.setattr(stages, "export", failing)
    with pytest.raises(PermanentError, match="unlucky"):
        cellar.backup(quiet_guest)
    assert in_time, "the compression that ran was to see the job gone"
    cellar.assert_let_go(quiet_guest)


def test_memory_does_not_grow_with_the_disk(make_guest: Callable[..., LabGuest], cellar: Cellar) -> None:
    """A sparse disk of 1 TiB with 1 GiB of incompressible data all over it."""
    guest = make_guest([DiskSpec("vda", 1024 * GIB)])
    guest.start(paused=True)
    for number in range(64):
        guest.poke("vda", number * 16 * GIB, 16 * MIB, seed=number)
    ran = subprocesses.run(cellar, guest.name)
    assert ran.code == 0, ran
    assert ran.report["read"] == GIB
    assert ran.report["peak"] < MEMORY_LIMIT, f"{ran.report['peak'] >> 20} MiB"
