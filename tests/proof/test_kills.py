"""Killed at any step, by any signal: the next backup is complete, nothing is lost and nothing is left.

Each case changes the guest, has a backup stopped at one place, changes the guest again, and backs up twice: the first
may go on with the instant of the stopped run, the second must hold the last change (pitfalls 2, 9, 17).
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.paths import vm_folder
from tests.proof import subprocesses
from tests.proof.cellar import MIB, Cellar, Disks, job_runs
from tests.proof.conftest import CellarFactory

pytestmark = pytest.mark.libvirt

STAGES = "vmcellar.backup.stages:"
PLACES = {
    "snapshot begins": (f"{STAGES}snapshot", 1, "before"),
    "job begun, not thawed": ("vmcellar.sources.libvirt_agent:Quiesce.thaw", 1, "before"),
    "job begun, not planned": ("vmcellar.sources.libvirt_source:LibvirtSource.begin", 1, "after"),
    "snapshot done": (f"{STAGES}snapshot", 1, "after"),
    "export reads": ("vmcellar.backup.landing:LandingWriter.append", 2, "after"),
    "one segment landed": (f"{STAGES}export", 1, "after"),
    "all landed": (f"{STAGES}release", 1, "before"),
    "job ended, not noted": ("vmcellar.sources.libvirt_capture:LibvirtCapture.end", 1, "after"),
    "released": (f"{STAGES}release", 1, "after"),
    "compress begins": (f"{STAGES}compress", 1, "before"),
    "compress seals": ("vmcellar.repository.pack_writer:PackWriter.append", 2, "after"),
    "compressed": (f"{STAGES}compress", 1, "after"),
    "pack durable, not noted": ("vmcellar.tiers.local:LocalTier.adopt", 1, "after"),
    "placed": (f"{STAGES}place", 1, "after"),
    "verify begins": (f"{STAGES}verify", 2, "before"),
    "verified": (f"{STAGES}verify", 2, "after"),
    "commit begins": (f"{STAGES}commit", 1, "before"),
    "point not written": ("vmcellar.repository.repository:Repository.commit", 1, "before"),
    "index part, no point": ("vmcellar.repository.index:Index.add", 1, "after"),
    "point written, not tidied": ("vmcellar.repository.repository:Repository.commit", 1, "after"),
    "committed": (f"{STAGES}commit", 1, "after"),
}
DIRECT_PLACES = {
    "chunk taken": ("vmcellar.backup.direct:DirectPath.take", 2, "after"),
    "packs sealed, not noted": ("vmcellar.backup.direct:DirectPath.finish", 1, "after"),
    "one segment in packs": (f"{STAGES}export", 1, "after"),
    "compressed": (f"{STAGES}compress", 1, "after"),
}
"""Where nothing lands: chunks go straight from the VM to their packs."""
NOT_RESUMED = (
    "snapshot begins",
    "job begun, not thawed",
    "job begun, not planned",
    "point written, not tidied",
    "committed",
)
"""Before them there is nothing to go on with, after them nothing to go on for."""
CLEAN_PLACES = {
    "job begun, not planned": "SIGTERM",
    "export reads": "SIGINT",
    "one segment landed": "SIGTERM",
    "all landed": "SIGTERM",
    "compress seals": "SIGINT",
    "commit begins": "SIGINT",
}
"""The last one comes too late to stop anything: the point is committed."""
SEEDS = itertools.count(1)


@pytest.fixture(scope="module")
def direct_cellar(shared_quiet_guest: LabGuest) -> Iterator[Cellar]:
    """The same with the default settings: what the compressors can take at once does not land."""
    with vm_folder("kills-direct") as folder:
        made = Cellar(folder / "cellar", {"limits": {"segment": MIB}})
        change(shared_quiet_guest)
        made.backup(shared_quiet_guest)
        yield made


@pytest.fixture(scope="module")
def cellar(shared_quiet_guest: LabGuest) -> Iterator[Cellar]:
    """The cellar of most cases, with small segments that all land, and a first backup."""
    with vm_folder("kills") as folder:
        made = Cellar(folder / "cellar", {"limits": {"segment": MIB}, "landing": {"direct": 0}})
        change(shared_quiet_guest)
        made.backup(shared_quiet_guest)
        yield made


def change(guest: LabGuest) -> None:
    """Something new on each disk: data, zeroes over data, a discard over data."""
    seed = next(SEEDS)
    place = seed % 6 * MIB
    guest.poke("vda", place, MIB + 64 * 1024, seed)
    guest.poke_zero("vda", (place + 3 * MIB) % (8 * MIB), MIB // 2)
    guest.poke("vdb", place, MIB, seed + 1000)
    guest.poke_discard("vdc", place, MIB // 2)
    guest.poke("vdc", place + MIB // 2, MIB, seed + 2000)


def options(place: str, kind: str) -> list[str]:
    """What has the runner stopped there."""
    at, call, when = {**PLACES, **DIRECT_PLACES}[place]
    return ["--at", at, "--call", str(call), "--when", when, "--signal", kind]


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_any_step_the_next_backups_lose_nothing(
    shared_quiet_guest: LabGuest, cellar: Cellar, place: str
) -> None:
    guest = shared_quiet_guest
    earlier = len(cellar.points(guest))
    change(guest)
    stopped_at = cellar.reference(guest)
    ran = subprocesses.run(cellar, guest.name, *options(place, "SIGKILL"))
    assert (ran.code, ran.struck) == (-signal.SIGKILL, True), ran
    died = [path.name for path in cellar.config.state.glob("runs/*/*")]
    resumed = assert_next_backups_are_complete(guest, cellar, earlier, stopped_at, died)
    assert resumed == (place not in NOT_RESUMED)


@pytest.mark.parametrize("place", DIRECT_PLACES)
def test_killed_while_chunks_go_straight_to_their_packs(
    shared_quiet_guest: LabGuest, direct_cellar: Cellar, place: str
) -> None:
    guest = shared_quiet_guest
    earlier = len(direct_cellar.points(guest))
    change(guest)
    stopped_at = direct_cellar.reference(guest)
    ran = subprocesses.run(direct_cellar, guest.name, *options(place, "SIGKILL"))
    assert (ran.code, ran.struck) == (-signal.SIGKILL, True), ran
    died = [path.name for path in direct_cellar.config.state.glob("runs/*/*")]
    assert assert_next_backups_are_complete(guest, direct_cellar, earlier, stopped_at, died)


@pytest.mark.parametrize(("place", "kind"), CLEAN_PLACES.items())
def test_stopped_by_a_signal_the_vm_is_let_go_at_once(
    shared_quiet_guest: LabGuest, cellar: Cellar, place: str, kind: str
) -> None:
    guest = shared_quiet_guest
    earlier = len(cellar.points(guest))
    change(guest)
    stopped_at = cellar.reference(guest)
    ran = subprocesses.run(cellar, guest.name, *options(place, kind))
    assert ran.struck, ran
    assert ran.code == (0 if place == "commit begins" else 130), ran
    assert not job_runs(guest)
    assert cellar.leftovers() == []
    assert_next_backups_are_complete(guest, cellar, earlier, stopped_at, [])


def assert_next_backups_are_complete(
    guest: LabGuest, cellar: Cellar, earlier: int, stopped_at: Disks, died: list[str]
) -> bool:
    """The next backups: each point holds its instant whole, the last one the last change.

    Whether the first went on with a run of `died`.
    """
    committed = cellar.points(guest)[earlier:]
    change(guest)
    following, now = cellar.backup_with_reference(guest)
    resumed = following.run_id in died
    for point in committed:
        cellar.assert_restores(point.id, stopped_at)
    cellar.assert_restores(following.id, stopped_at if resumed else now)
    if resumed:
        last, last_disks = cellar.backup_with_reference(guest)
        cellar.assert_restores(last.id, last_disks)
    cellar.assert_nothing_left(guest)
    made = cellar.points(guest)[earlier:]
    assert [point.kind for point in made] == ["incremental"] * (len(committed) + 1 + resumed)
    assert len({point.checkpoint for point in made}) == len(made)
    return resumed


@pytest.mark.parametrize("lost", ["nothing", "a landing", "a sealed pack"])
def test_half_a_full_is_not_read_again(make_guest: Callable[..., LabGuest], vm_tmp: Path, lost: str) -> None:
    """Twelve segments, killed in the seventh: the next process reads what is missing, and no byte of the six."""
    guest = make_guest([DiskSpec("vda", 32 * MIB)])
    guest.start(paused=True)
    guest.poke("vda", 0, 24 * MIB, 5)
    landing = {"landing": {"direct": 0}} if lost == "a landing" else {}
    cellar = Cellar(vm_tmp / "cellar", {"limits": {"segment": MIB}, **landing})
    expected = cellar.reference(guest)
    killed = subprocesses.run(cellar, guest.name, "--at", f"{STAGES}export", "--call", "7", "--reading", "1")
    assert killed.code == -signal.SIGKILL
    again = lose(cellar, lost)
    guest.poke("vda", 0, 24 * MIB, 6)
    second = subprocesses.run(cellar, guest.name)
    assert second.code == 0, second
    assert second.report["reused"] == 6 - again
    assert second.report["read"] == (12 + 2 * again) * MIB
    cellar.assert_restores(second.report["point"], expected)
    cellar.assert_nothing_left(guest)
    last, now = cellar.backup_with_reference(guest)
    cellar.assert_restores(last.id, now)
    assert last.kind == "incremental"


def lose(cellar: Cellar, what: str) -> int:
    """Remove something that a dead run had ready; how many segments must be read again for that."""
    if what == "nothing":
        return 0
    if what == "a landing":
        packed = {path.name.removesuffix(".compress.json") for path in cellar.config.state.rglob("*.compress.json")}
        landings = cellar.config.landing.dir.rglob("*.land")
        found = sorted(path for path in landings if path.stat().st_size and path.stem not in packed)
        if not found:  # all were compressed by then: one that is still there is needed no more
            return 0
    else:
        found = sorted((cellar.base / "repository" / "staging").rglob("*.pack"))
    found[0].unlink()
    return 1


@pytest.mark.guest
def test_killed_while_the_guest_is_frozen_it_is_thawed_by_the_next_backup(
    guest: LabGuest, make_cellar: CellarFactory
) -> None:
    cellar = make_cellar()
    ran = subprocesses.run(cellar, guest.name, *options("job begun, not thawed", "SIGKILL"))
    assert ran.code == -signal.SIGKILL
    assert guest.agent("guest-fsfreeze-status") == "frozen"
    summary, expected = cellar.backup_with_reference(guest)
    assert guest.agent("guest-fsfreeze-status") == "thawed"
    assert summary.consistency == "quiesced"
    cellar.assert_restores(summary.id, expected)
    cellar.assert_nothing_left(guest)
