"""Errors that say what to do, and checkpoints that never mislead."""

from __future__ import annotations

import re
import shutil
import signal
import uuid
from collections.abc import Callable

import pytest

from lab.guest import LabGuest
from tests.proof import subprocesses
from tests.proof.cellar import MIB, Cellar, checkpoints, job_runs
from tests.proof.conftest import SMALL_DISKS, CellarFactory
from vmcellar.backup import pipeline, stages
from vmcellar.backup.model import BackupRequest
from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.repository.repository import Repository

pytestmark = pytest.mark.libvirt

STAGES = "vmcellar.backup.stages:"


def test_no_such_vm(quiet_guest: LabGuest, cellar: Cellar) -> None:
    """The message names what was asked for, the hint what there is."""
    with pytest.raises(PermanentError, match=f"{quiet_guest.name}x: no such VM at qemu:///system") as raised:
        pipeline.run(cellar.engine, BackupRequest(f"{quiet_guest.name}x"))
    assert quiet_guest.name in raised.value.hint
    assert cellar.leftovers() == []


def test_vm_not_running(make_guest: Callable[..., LabGuest], cellar: Cellar) -> None:
    guest = make_guest(SMALL_DISKS)
    with pytest.raises(PermanentError, match=f"{guest.name}: the VM is not running") as raised:
        cellar.backup(guest)
    assert f"virsh start {guest.name}" in raised.value.hint
    assert f"vmcellar backup {guest.name} --start-paused" in raised.value.hint
    assert cellar.leftovers() == []
    guest.start(paused=True)
    first = cellar.backup(guest)
    guest.destroy()
    with pytest.raises(PermanentError, match="the VM is not running"):
        cellar.backup(guest)
    cellar.assert_restores(first.id, cellar.reference(guest))


@pytest.mark.parametrize(
    ("uri", "kind", "hint"),
    [
        ("qemu+unix:///system?socket=/nonexistent/libvirt-sock", TransientError, "start the daemon"),
        ("nonsense:///system", PermanentError, "libvirt.uri"),
    ],
)
def test_no_libvirt(make_cellar: CellarFactory, uri: str, kind: type[VmcellarError], hint: str) -> None:
    cellar = make_cellar(libvirt={"uri": uri})
    with pytest.raises(kind, match="no connection to libvirt") as raised:
        pipeline.run(cellar.engine, BackupRequest("any"))
    assert hint in raised.value.hint
    assert cellar.leftovers() == []


def test_incremental_without_a_parent_is_refused(quiet_guest: LabGuest, cellar: Cellar) -> None:
    with pytest.raises(PermanentError, match="no verified restore point"):
        cellar.backup(quiet_guest, mode="incremental")
    cellar.backup(quiet_guest)
    assert cellar.backup(quiet_guest, mode="incremental").kind == "incremental"
    full = cellar.backup(quiet_guest, mode="full")
    assert (full.kind, full.reason) == ("full", "a full backup was asked for")


def test_an_orphan_checkpoint_is_never_a_parent(quiet_guest: LabGuest, cellar: Cellar) -> None:
    """Pitfall 2, at its worst: the run died, and all that this host knew of it is lost."""
    quiet_guest.poke("vda", 0, MIB, seed=1)
    first = cellar.backup(quiet_guest)
    quiet_guest.poke("vda", MIB, MIB, seed=2)
    ran = subprocesses.run(cellar, quiet_guest.name, "--at", f"{STAGES}commit")
    assert ran.code == -signal.SIGKILL
    shutil.rmtree(cellar.config.state)
    recorded = {point.checkpoint for point in cellar.points(quiet_guest)}
    assert len(set(checkpoints(quiet_guest)) - recorded) == 1, "the orphan"
    second, expected = cellar.backup_with_reference(quiet_guest)
    assert (second.kind, second.parent) == ("incremental", first.id)
    assert sum(disk.bytes_changed for disk in second.disks) == MIB, "what changed since the orphan is not all"
    cellar.assert_restores(second.id, expected)
    assert set(checkpoints(quiet_guest)) <= {point.checkpoint for point in cellar.points(quiet_guest)}


def test_checkpoint_names_are_unique_and_of_one_repository(
    quiet_guest: LabGuest, cellar: Cellar, make_cellar: CellarFactory
) -> None:
    """Pitfalls 3 and 8."""
    other = make_cellar("other")
    for each in (cellar, other, cellar, other, cellar):
        each.backup(quiet_guest)
    names = [point.checkpoint for each in (cellar, other) for point in each.points(quiet_guest)]
    assert len(set(names)) == 5
    for each in (cellar, other):
        prefix = f"vmcellar-{Repository.open(each.config).id.hex()[:8]}-"
        for point in each.points(quiet_guest):
            assert point.checkpoint.startswith(prefix)
            uuid.UUID(point.checkpoint.removeprefix(prefix))


@pytest.mark.parametrize("shared", [False, True], ids=["own state", "one state directory"])
def test_two_repositories_of_one_vm_lose_nothing(
    quiet_guest: LabGuest, cellar: Cellar, make_cellar: CellarFactory, shared: bool
) -> None:
    """Pitfall 8; also where both keep their runs and landings in the same folders, as the default settings do."""
    settings = {"state": str(cellar.config.state), "landing": {"dir": str(cellar.config.landing.dir)}} if shared else {}
    other = make_cellar("other", scratch=str(cellar.config.scratch), **settings)
    seed = 0
    for _ in range(3):
        for each in (cellar, other):
            seed += 1
            quiet_guest.poke("vda", seed * MIB, MIB, seed)
            quiet_guest.poke_zero("vda", (seed - 1) * MIB, 64 * 1024)
            summary, expected = each.backup_with_reference(quiet_guest)
            each.assert_restores(summary.id, expected)
            assert summary.kind == ("full" if seed < 3 else "incremental")
    for each in (cellar, other):
        each.assert_nothing_left(quiet_guest)


@pytest.mark.parametrize("shared", [False, True], ids=["own state", "one state directory"])
def test_a_died_run_of_one_repository_is_not_the_others_to_touch(
    quiet_guest: LabGuest, cellar: Cellar, make_cellar: CellarFactory, shared: bool
) -> None:
    settings = {"state": str(cellar.config.state), "landing": {"dir": str(cellar.config.landing.dir)}} if shared else {}
    other = make_cellar("other", scratch=str(cellar.config.scratch), **settings)
    for each in (cellar, other):
        each.backup(quiet_guest)
    quiet_guest.poke("vdb", MIB, MIB, seed=1)
    at_death = cellar.reference(quiet_guest)
    ran = subprocesses.run(cellar, quiet_guest.name, "--at", f"{STAGES}release", "--when", "after")
    assert ran.code == -signal.SIGKILL
    assert not job_runs(quiet_guest)
    quiet_guest.poke("vdb", 3 * MIB, MIB, seed=2)
    now = cellar.reference(quiet_guest)
    fresh = other.backup(quiet_guest)
    other.assert_restores(fresh.id, now)
    stages.recover(other.engine)
    resumed = cellar.backup(quiet_guest)
    cellar.assert_restores(resumed.id, at_death)
    last = cellar.backup(quiet_guest)
    cellar.assert_restores(last.id, now)
    for each in (cellar, other):
        each.assert_nothing_left(quiet_guest)


def test_engines_that_live_long_see_what_others_committed(quiet_guest: LabGuest, cellar: Cellar) -> None:
    """A worker keeps its engine for weeks, while the command line backs the same VM up from other processes."""
    worker, by_hand = cellar.new_engine(), cellar.new_engine()
    for seed, engine in enumerate((worker, by_hand, worker, by_hand), 1):
        quiet_guest.poke("vda", seed * MIB, MIB, seed)
        expected = cellar.reference(quiet_guest)
        summary = pipeline.run(engine, BackupRequest(quiet_guest.name))
        cellar.assert_restores(summary.id, expected)
        assert summary.kind == ("incremental" if seed > 1 else "full")
    parents = [point.parent for point in cellar.points(quiet_guest)]
    assert parents == [None, *(point.id for point in cellar.points(quiet_guest)[:-1])]
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", parents[-1] or "")
