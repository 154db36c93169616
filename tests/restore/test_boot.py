"""Instant restore on real libvirt: the VM runs at once, its disks come over, and a kill at any phase loses nothing."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import libvirt
import pytest

from lab.disks import MIB, DiskSpec
from lab.inside import GuestInside
from lab.monitor import seeded_bytes
from lab.require import requires
from lab.waiting import wait_for
from tests.restore.served_world import config_of
from tests.restore.test_restore import restored_bytes
from tests.restore.world import World, random_disk
from vmcellar.errors import PermanentError, TransientError
from vmcellar.progress import CancelToken, no_progress
from vmcellar.repository.points import RestorePoint
from vmcellar.restore import boot
from vmcellar.restore.boot import Booter, BootReport
from vmcellar.restore.boot_disks import with_backing, without_backing
from vmcellar.restore.boot_journal import Boot, BootJournal, all_boots, begin, go_on, is_served, new_entry
from vmcellar.restore.boot_pull import has_backing
from vmcellar.restore.serve import Opening, Server
from vmcellar.sources.libvirt_artifacts import collect
from vmcellar.sources.libvirt_connection import Connection

if TYPE_CHECKING:
    from lab.guest import LabGuest
    from tests.conftest import GuestFactory

SIZE = 24 * MIB


@pytest.fixture
def old(make_guest: GuestFactory) -> LabGuest:
    """The VM that was backed up: a disk with a file system, and one that its guest never touches."""
    requires("nbdkit-python")
    return make_guest((DiskSpec("vda", 32 * MIB, ext4=True), DiskSpec("sda", SIZE)))


@pytest.fixture
def name(libvirt_daemons: str) -> Iterator[str]:
    """A name for the new VM, which is removed again; the lab's sweep knows it, too."""
    chosen = f"lab-{os.getpid()}-boot-{uuid.uuid4().hex[:8]}"
    yield chosen
    connection = libvirt.open(libvirt_daemons)
    for domain in connection.listAllDomains():
        if domain.name() == chosen:
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    connection.close()


def point_of(world: World, guest: LabGuest) -> RestorePoint:
    """A point of the guest as it is while it is off; its second disk is random."""
    raw = world.settings.state / "vda.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", guest.paths["vda"], raw], check=True)
    artifacts, warnings = collect(guest.domain)
    assert warnings == ()
    return world.add({"vda": raw.read_bytes(), "sda": random_disk(random.Random(41), SIZE)}, artifacts)


def entry_for(point: RestorePoint, name: str, folder: Path) -> Boot:
    return new_entry(name, str(uuid.uuid4()), point.id, point.vm, folder, tuple(disk.target for disk in point.disks))


def booter(world: World, uri: str) -> Booter:
    return Booter(world.repository, Opening(config_of(world)), Connection(uri))


def go(world: World, journal: BootJournal, uri: str) -> BootReport:
    return booter(world, uri).go(journal, lambda _seconds: None, no_progress, CancelToken())


def needs_no_repository(world: World, entry: Boot, point: RestorePoint, uri: str) -> None:
    """The disks are whole without a server, and the definition knows nothing of one."""
    assert all_boots(world.settings.state) == []
    assert not any(has_backing(entry.overlay(target)) for target in entry.targets)
    connection = libvirt.open(uri)
    domain = connection.lookupByName(entry.name)
    assert "nbd" not in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    if domain.isActive():
        domain.destroy()
    connection.close()
    assert restored_bytes(entry.overlay("sda"), "qcow2", SIZE) == world.models[point.id]["sda"]
    assert {path.name for path in Path(entry.folder).iterdir()} >= {"vda.qcow2", "sda.qcow2"}
    assert not entry.socket.exists()


@pytest.mark.guest
@pytest.mark.libvirt
def test_the_guest_boots_and_needs_the_repository_no_more(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str
) -> None:
    point = point_of(world, old)
    entry = entry_for(point, name, vm_tmp / "boot")
    with begin(world.settings.state, entry) as journal:
        assert is_served(world.settings.state, name)
        report = go(world, journal, libvirt_daemons)
    assert report.runs
    connection = libvirt.open(libvirt_daemons)
    inside = GuestInside(connection, name)
    try:
        inside.wait_ready()
        inside.check("grep -q ' /data ext4' /proc/mounts")
    finally:
        inside.close_channel()
        connection.close()
    needs_no_repository(world, entry, point, libvirt_daemons)


@pytest.mark.libvirt
def test_a_server_that_is_killed_is_started_again(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU was in the midst of bringing a disk over, and comes back to the new one by itself."""
    point = point_of(world, old)
    entry = entry_for(point, name, vm_tmp / "boot")
    starts: list[subprocess.Popen[bytes]] = []
    spawn = Server._spawn

    def spawning(server: Server, channel: int) -> subprocess.Popen[bytes]:
        starts.append(spawn(server, channel))
        return starts[-1]

    def kill_server(_seconds: float) -> None:
        starts[0].kill()
        starts[0].wait()

    monkeypatch.setattr(Server, "_spawn", spawning)
    with begin(world.settings.state, entry) as journal:
        report = booter(world, libvirt_daemons).go(journal, kill_server, no_progress, CancelToken())
    assert report.runs
    assert [process.returncode for process in starts] == [-signal.SIGKILL, 0]
    needs_no_repository(world, entry, point, libvirt_daemons)


def test_a_server_that_ends_again_and_again_is_given_up() -> None:
    revived: list[int] = []
    server = SimpleNamespace(ended=True, revive=lambda: revived.append(1))
    keeper = boot._Keeper(server, "web")  # type: ignore[arg-type]  # all of a server that it uses
    for _ in range(boot._REVIVED_MOST):
        keeper.look()
    with pytest.raises(TransientError, match="ended 6 times"):
        keeper.look()
    assert len(revived) == boot._REVIVED_MOST


KILLED = """
import os, signal, sys
from pathlib import Path
from vmcellar.config import load_config
from vmcellar.progress import CancelToken
from vmcellar.repository.repository import Repository
from vmcellar.restore import boot, boot_disks, boot_pull
from vmcellar.restore.boot_journal import BootJournal, begin, new_entry
from vmcellar.restore.serve import Opening
from vmcellar.sources.libvirt_connection import Connection

config, point_id, name, folder, uri, identity, where = sys.argv[1:]
settings = load_config(Path(config))
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
reach = BootJournal.reach
def reaching(self, phase):
    if where == "before-" + phase:
        die()
    reach(self, phase)
    if where == phase:
        die()
BootJournal.reach = reaching
if where == "pulled-one":
    real = boot_pull.bring_over
    def once(domain, entry, target, *rest):
        real(domain, entry, target, *rest)
        die()
    boot_pull.bring_over = once
if where == "all-pulled":
    boot.Booter._let_repository_go = die
if where == "held":
    boot_disks.RECONNECT_SECONDS = 1
repository = Repository.open(settings)
point = repository.point(point_id)
entry = new_entry(name, identity, point.id, point.vm, Path(folder), tuple(disk.target for disk in point.disks))
waits = {"running": die, "held": lambda seconds: signal.pause()}
started = waits.get(where, lambda seconds: None)
with begin(settings.state, entry) as journal:
    booter = boot.Booter(repository, Opening(Path(config)), Connection(uri))
    booter.go(journal, started, lambda *_: None, CancelToken())
"""
EVERY = ("before-defined", "defined", "started", "running", "pulled-one", "all-pulled")
PHASES = EVERY if os.environ.get("VMCELLAR_EVERY_PHASE") else ("defined", "started", "running")
"""Each takes five seconds or more, so CI has three; all by hand with VMCELLAR_EVERY_PHASE=1."""


def begun(world: World, point: RestorePoint, entry: Boot, uri: str, where: str) -> subprocess.Popen[bytes]:
    """A process that boots the VM, and is killed or waits there."""
    arguments = (config_of(world), point.id, entry.name, entry.folder, uri, entry.uuid, where)
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def killed(world: World, point: RestorePoint, entry: Boot, uri: str, where: str) -> None:
    assert begun(world, point, entry, uri, where).wait() == -signal.SIGKILL
    left(world, entry)


def left(world: World, entry: Boot) -> None:
    assert [one.name for one in all_boots(world.settings.state)] == [entry.name]
    assert not is_served(world.settings.state, entry.name)


@pytest.mark.libvirt
@pytest.mark.parametrize("where", PHASES)
def test_a_kill_and_finish(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str, where: str
) -> None:
    point = point_of(world, old)
    entry = entry_for(point, name, vm_tmp / "boot")
    killed(world, point, entry, libvirt_daemons, where)
    with go_on(world.settings.state, name) as journal:
        assert journal.entry.uuid == entry.uuid
        report = go(world, journal, libvirt_daemons)
    assert report.runs == (where != "started")  # a start that was not seen to happen is not done for the user
    needs_no_repository(world, entry, point, libvirt_daemons)


@pytest.mark.guest
@pytest.mark.libvirt
@pytest.mark.skipif(not os.environ.get("VMCELLAR_EVERY_PHASE"), reason="takes 13 s: VMCELLAR_EVERY_PHASE=1")
def test_a_guest_that_was_stopped_for_want_of_its_server_goes_on(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str
) -> None:
    """The command is killed, and nobody types --finish before QEMU has waited as long as it does.

    What the guest wrote is there, and a read that was under way ends with the disk's own bytes.
    """
    point = point_of(world, old)
    entry = entry_for(point, name, vm_tmp / "boot")
    connection = libvirt.open(libvirt_daemons)
    with begun(world, point, entry, libvirt_daemons, "held") as process:
        try:
            inside = started(connection, name)
            inside.wait_ready()
            inside.fill("kept", 65536, seed=5)
        finally:
            process.kill()
    left(world, entry)
    inside.check("( sha256sum $(lab-device lab-sda) >/run/read ) </dev/null >/dev/null 2>&1 &")
    stopped = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
    wait_for(lambda: inside.domain.state() == stopped, "QEMU to stop the guest")
    with go_on(world.settings.state, name) as journal:
        assert go(world, journal, libvirt_daemons).runs
    wait_for(lambda: inside.run("test -s /run/read")[0] == 0, "the guest to have read its disk")
    assert inside.digest("/data/kept") == hashlib.sha256(seeded_bytes(65536, 5)).hexdigest()
    assert inside.check("cut -d' ' -f1 /run/read").strip() == hashlib.sha256(world.models[point.id]["sda"]).hexdigest()
    inside.close_channel()
    connection.close()
    needs_no_repository(world, entry, point, libvirt_daemons)


def started(connection: libvirt.virConnect, name: str) -> GuestInside:
    """The VM, once another process has started it."""
    flags = libvirt.VIR_CONNECT_LIST_DOMAINS_RUNNING
    wait_for(lambda: name in [domain.name() for domain in connection.listAllDomains(flags)], "the VM to be started")
    return GuestInside(connection, name)


@pytest.mark.libvirt
@pytest.mark.parametrize("where", EVERY if os.environ.get("VMCELLAR_EVERY_PHASE") else ("before-defined", "running"))
def test_a_kill_and_abort(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str, where: str
) -> None:
    point = point_of(world, old)
    entry = entry_for(point, name, vm_tmp / "boot")
    killed(world, point, entry, libvirt_daemons, where)
    with go_on(world.settings.state, name) as journal:
        booter(world, libvirt_daemons).abort(journal)
    assert all_boots(world.settings.state) == []
    assert not Path(entry.folder).exists()
    assert Connection(libvirt_daemons).find(name) is None


@pytest.mark.libvirt
def test_what_libvirt_refuses_leaves_nothing(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str
) -> None:
    point = point_of(world, old)
    xml = old.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).replace("<vcpu placement='static'>1", "<vcpu>0")
    point = world.add(world.models[point.id], {"domain.xml": xml.encode()})
    entry = entry_for(point, name, vm_tmp / "boot")
    with begin(world.settings.state, entry) as journal, pytest.raises(PermanentError):
        go(world, journal, libvirt_daemons)
    assert all_boots(world.settings.state) == []
    assert not Path(entry.folder).exists()


@pytest.mark.libvirt
def test_a_stop_while_it_starts_takes_no_vm_back_that_runs(
    world: World, old: LabGuest, name: str, vm_tmp: Path, libvirt_daemons: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = point_of(world, old)
    entry = entry_for(point, name, vm_tmp / "boot")
    create = libvirt.virDomain.create

    def stopped(domain: libvirt.virDomain) -> None:
        create(domain)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, begin(world.settings.state, entry) as journal:
        patch.setattr(libvirt.virDomain, "create", stopped)
        with pytest.raises(KeyboardInterrupt):
            go(world, journal, libvirt_daemons)
    with go_on(world.settings.state, name) as journal:
        assert go(world, journal, libvirt_daemons).runs
    needs_no_repository(world, entry, point, libvirt_daemons)


DISK = "<disk><driver name='qemu'/><source file='/x'/><backingStore/><target dev='vda'/></disk>"
ONE = f"<domain><devices>{DISK}</devices></domain>"


def test_the_backing_goes_in_and_out_of_a_definition(tmp_path: Path) -> None:
    entry = Boot("web", "u", "p", "web", str(tmp_path), ("vda",), "preparing", 0.0)
    there = with_backing(ONE, entry)
    assert f'socket="{tmp_path}/.boot.sock"' in there
    assert 'rerror_policy="stop"' in there
    assert without_backing(there, entry) == without_backing(ONE, entry)


@pytest.mark.parametrize("name", ["a/b", "Сервер базы данных " * 3])
def test_two_of_one_name_and_none(tmp_path: Path, name: str) -> None:
    entry = Boot(name, "u", "p", "web", "/x", ("vda",), "preparing", 0.0)
    with begin(tmp_path, entry), pytest.raises(PermanentError, match="another process"), go_on(tmp_path, name):
        pass
    with pytest.raises(PermanentError, match="before and is not finished"), begin(tmp_path, entry):
        pass
    assert all_boots(tmp_path) == [entry]
    with go_on(tmp_path, name) as journal:
        journal.reach("started")
        assert [one.phase for one in all_boots(tmp_path)] == ["started"]
        journal.end()
    with pytest.raises(PermanentError, match=f"no VM {name}"), go_on(tmp_path, name):
        pass
