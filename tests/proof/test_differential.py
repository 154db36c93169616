"""`mode: differential`: all that changed since the newest full, measured by the full's own checkpoint and composed over
its map, so that nothing that happened to the points between matters.
"""

from __future__ import annotations

import signal

import libvirt
import pytest

from lab.guest import LabGuest
from tests.proof import subprocesses
from tests.proof.cellar import MIB, Cellar, checkpoints
from tests.proof.conftest import CellarFactory
from vmcellar.backup.model import PointSummary

pytestmark = pytest.mark.libvirt

JOBS = [{"name": "weekly", "mode": "differential"}]


@pytest.fixture
def differential(make_cellar: CellarFactory) -> Cellar:
    """A cellar with a differential job for every VM, in which no sampled re-read finds anything by chance."""
    return make_cellar(backups=JOBS, limits={"sample": 0})


def take(cellar: Cellar, guest: LabGuest, mode: str = "differential") -> PointSummary:
    """Back up, and compare the whole of every restored disk with a reference of that instant."""
    summary, expected = cellar.backup_with_reference(guest, mode=mode, job="weekly" if mode == "differential" else "")
    assert expected
    cellar.assert_restores(summary.id, expected)
    cellar.assert_nothing_left(guest)
    return summary


def checkpoint_of(cellar: Cellar, summary: PointSummary) -> str:
    return cellar.point(summary).checkpoint


def changed(cellar: Cellar, summary: PointSummary, target: str = "vda") -> int:
    return cellar.point(summary).disk(target).bytes_changed


def test_each_reads_what_changed_since_the_full(quiet_guest: LabGuest, differential: Cellar) -> None:
    size = quiet_guest.disks["vda"].size
    for number in range(8):
        quiet_guest.poke("vda", number * MIB, MIB, seed=10 + number)
    full = take(differential, quiet_guest)
    assert full.kind == "full"
    quiet_guest.poke("vda", 0, MIB, seed=2)
    quiet_guest.poke("vda", 2 * MIB, MIB, seed=2)
    first = take(differential, quiet_guest)
    assert (first.kind, first.parent, changed(differential, first)) == ("incremental", full.id, 2 * MIB)
    quiet_guest.poke_zero("vda", 4 * MIB, MIB)
    quiet_guest.poke_discard("vda", 6 * MIB, MIB)
    quiet_guest.poke("vda", 2 * MIB, MIB, seed=12)  # as it was when the full was taken
    between = [take(differential, quiet_guest, "auto") for _ in range(4)]
    quiet_guest.domain.blockResize("vda", size + 2 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    second = take(differential, quiet_guest)
    assert (second.kind, second.parent) == ("incremental", full.id)
    assert changed(differential, second) == 6 * MIB, "since the full, not since the point before"
    kept = [checkpoint_of(differential, each) for each in (full, *between[2:], second)]
    assert checkpoints(quiet_guest) == kept, "the full's checkpoint outlives the newest three"


def test_a_new_full_or_another_mode_releases_the_base(quiet_guest: LabGuest, differential: Cellar) -> None:
    full = take(differential, quiet_guest)
    for _ in range(3):
        take(differential, quiet_guest)
    assert checkpoint_of(differential, full) in checkpoints(quiet_guest)
    newer = differential.backup(quiet_guest, mode="full")
    for _ in range(3):
        take(differential, quiet_guest)
    assert checkpoint_of(differential, full) not in checkpoints(quiet_guest)
    assert checkpoint_of(differential, newer) in checkpoints(quiet_guest)
    take(differential.with_settings(backups=[{"name": "weekly", "mode": "auto"}]), quiet_guest, "auto")
    assert checkpoint_of(differential, newer) not in checkpoints(quiet_guest)


def test_a_checkpoint_between_that_lost_its_metadata_or_bitmap_changes_nothing(
    quiet_guest: LabGuest, differential: Cellar
) -> None:
    full = take(differential, quiet_guest)
    between = []
    for seed in (3, 4):
        quiet_guest.poke("vda", seed * MIB, MIB, seed=seed)
        between.append(checkpoint_of(differential, take(differential, quiet_guest, "auto")))
    forget(quiet_guest, between[0])
    quiet_guest.poke("vda", 8 * MIB, MIB, seed=5)
    quiet_guest.domain.checkpointLookupByName(between[1]).delete()
    quiet_guest.poke("vda", 9 * MIB, MIB, seed=6)
    point = take(differential, quiet_guest)
    assert (point.parent, changed(differential, point)) == (full.id, 4 * MIB)


def test_a_base_without_its_bitmap_is_given_up(quiet_guest: LabGuest, differential: Cellar) -> None:
    full = take(differential, quiet_guest)
    quiet_guest.domain.checkpointLookupByName(checkpoint_of(differential, full)).delete()
    quiet_guest.poke("vda", 0, MIB, seed=7)
    again = take(differential, quiet_guest)
    assert (again.kind, again.parent) == ("full", None)
    assert "the parent's checkpoint is gone" in again.reason
    quiet_guest.poke("vda", MIB, MIB, seed=8)
    assert take(differential, quiet_guest).parent == again.id


def test_a_disk_that_was_read_whole_since_gives_the_base_up(quiet_guest: LabGuest, differential: Cellar) -> None:
    """A tracker that lied once may have lied to the base's bitmap, too, and a sample need not find that again."""
    full = take(differential, quiet_guest)
    quiet_guest.domain.blockResize("vda", 12 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    assert take(differential, quiet_guest, "auto").kind == "incremental"
    quiet_guest.domain.blockResize("vda", 16 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    point = take(differential, quiet_guest)
    assert point.kind == "full"
    assert f"point {full.id} is given up" in point.reason
    assert "vda was read whole for point" in point.reason


def test_libvirt_forgot_the_checkpoints(quiet_guest: LabGuest, differential: Cellar) -> None:
    full = take(differential, quiet_guest)
    for seed in (1, 2):
        quiet_guest.poke("vda", seed * MIB, MIB, seed=seed)
        take(differential, quiet_guest, "auto")
    for name in reversed(checkpoints(quiet_guest)):
        forget(quiet_guest, name)
    assert checkpoints(quiet_guest) == []
    point = take(differential, quiet_guest)
    assert (point.parent, changed(differential, point)) == (full.id, 2 * MIB)
    assert take(differential, quiet_guest, "auto").kind == "incremental"
    assert take(differential, quiet_guest).parent == full.id


@pytest.mark.parametrize(
    "place",
    [
        "vmcellar.backup.snapshot:_plan",
        "vmcellar.backup.stages:export",
        "vmcellar.backup.stages:release",
        "vmcellar.backup.stages:commit",
        "vmcellar.backup.commit:_tidy",
    ],
)
def test_killed_at_each_step(quiet_guest: LabGuest, differential: Cellar, place: str) -> None:
    full = take(differential, quiet_guest)
    quiet_guest.poke("vda", 0, MIB, seed=1)
    ran = subprocesses.run(differential, quiet_guest.name, "--mode", "differential", "--job", "weekly", "--at", place)
    assert ran.code == -signal.SIGKILL
    assert ran.struck
    quiet_guest.poke("vda", MIB, MIB, seed=2)
    take(differential, quiet_guest, "auto")  # another question than that of the dead run, which is undone
    assert checkpoint_of(differential, full) in checkpoints(quiet_guest)
    point = take(differential, quiet_guest)
    assert (point.parent, changed(differential, point)) == (full.id, 2 * MIB)


def forget(guest: LabGuest, name: str) -> None:
    """Have libvirt lose a checkpoint, whose bitmap stays in the image."""
    flag = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
    guest.domain.checkpointLookupByName(name).delete(flag)
