"""Drills of points of a real guest: it boots alone, is checked, measured and thrown away, whatever happens."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from lab.disks import MIB, DiskSpec
from lab.inside import GuestInside
from lab.require import requires
from lab.waiting import wait_for
from tests.restore.served_world import config_of
from tests.restore.world import World
from vmcellar.config.drill import Drill
from vmcellar.errors import PermanentError
from vmcellar.repository.evidence import Check, Evidence
from vmcellar.repository.points import RestorePoint
from vmcellar.restore import drill, drill_copy, drill_journal
from vmcellar.restore.drill import DrillOrder, drill_point
from vmcellar.restore.drill_alive import Life, Watch
from vmcellar.restore.drill_copy import Copy, served
from vmcellar.restore.drill_journal import Journal
from vmcellar.restore.plan import chunk_ids
from vmcellar.restore.serve import Opening
from vmcellar.sources.libvirt_artifacts import collect

if TYPE_CHECKING:
    from lab.guest import LabGuest
    from tests.conftest import GuestFactory

DISKS = (DiskSpec("vda", 16 * MIB, ext4=True),)
FILE = b"what must come back\n"
QUICK: dict[str, Any] = {"agent": "3s", "serial": "1s", "screen": "1s"}


@pytest.fixture
def old(make_guest: GuestFactory) -> LabGuest:
    """The VM that was backed up; it stays off."""
    return make_guest(DISKS)


def point_of(
    world: World, guest: LabGuest, changed: Mapping[str, bytes] | None = None, edit: Any = None
) -> RestorePoint:
    """A point of the guest as it is while off, with a file in its file system; `changed` artifacts, edited XML."""
    raw = world.settings.state / "vda.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", guest.paths["vda"], raw], check=True)
    (world.settings.state / "file").write_bytes(FILE)
    write = f"write {world.settings.state}/file hello"
    subprocess.run(["debugfs", "-w", "-R", write, raw], check=True, capture_output=True)
    artifacts, _ = collect(guest.domain)
    artifacts = {**artifacts, **(changed or {})}
    if edit is not None:
        domain = ET.fromstring(artifacts["domain.xml"])  # noqa: S314  (libvirt's own output)
        edit(domain)
        artifacts["domain.xml"] = ET.tostring(domain)
    return world.add({"vda": raw.read_bytes()}, artifacts)


def order(world: World, folder: Path, uri: str, *, keep: bool = False, **rules: Any) -> DrillOrder:
    rule = Drill.model_validate(rules)
    opening = Opening(config_of(world)) if rule.method == "boot" else None
    return DrillOrder(uri, world.settings.state, folder, rule, keep=keep, rto_limit=300, opening=opening)


def assert_nothing_left(world: World, folder: Path, uri: str) -> None:
    connection = libvirt.open(uri)
    assert [d.name() for d in connection.listAllDomains() if "vmcellar-drill-" in d.name()] == []
    connection.close()
    assert not (folder / "drills").exists()
    assert drill_journal.journals(world.settings.state) == []


def check_of(evidence: Evidence, name: str) -> Check:
    return next(check for check in evidence.checks if check.name == name)


@pytest.mark.guest
@pytest.mark.libvirt
def test_a_sound_point_boots_passes_its_checks_and_is_gone(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str
) -> None:
    def add_network_and_screen(domain: ET.Element) -> None:
        devices = domain.find("devices")
        assert devices is not None
        ET.SubElement(ET.SubElement(devices, "interface", type="network"), "source", network="no-such-network")
        ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga")

    point = point_of(world, old, edit=add_network_and_screen)
    files = [{"path": "/data/hello", "sha256": hashlib.sha256(FILE).hexdigest()}]
    commands: list[dict[str, Any]] = [
        {"run": "cat /data/hello; ls /sys/class/net", "output": "what must come back"},
        {"run": "ls /sys/class/net | grep eth", "exit": 1},
        {"run": "exit 7", "exit": 7},
    ]
    counts = [{"path": "/data", "least": 1, "most": 1}]
    evidence = drill_point(
        world.repository, point, order(world, vm_tmp, libvirt_daemons, files=files, commands=commands, counts=counts)
    )
    assert check_of(evidence, "count /data").found == "1 files"
    assert [check for check in evidence.checks if not check.ok] == []
    assert (evidence.verdict, evidence.alive) == ("passed", "agent")
    assert set(evidence.seconds) == {"restore", "define", "start", "alive", "checks"}
    assert evidence.rto == pytest.approx(sum(evidence.seconds.values()))
    assert evidence.screenshot.startswith(b"\x89PNG")
    assert abs(float(check_of(evidence, "clock").found.removesuffix(" s"))) < 600
    assert_nothing_left(world, vm_tmp, libvirt_daemons)

    def set_clock_wrong(domain: ET.Element) -> None:
        ET.SubElement(domain, "clock", offset="variable", adjustment="86400", basis="utc")

    point = point_of(world, old, edit=set_clock_wrong)
    wrong = [{"path": "/data/hello", "sha256": "00" * 32}, {"path": "/data/none", "sha256": "00" * 32}]
    late = [{"run": "sleep 60", "limit": "1s"}, {"run": "cat /data/hello", "output": "something else"}]
    few = [{"path": "/data", "least": 2}, {"path": "/data", "most": 0, "least": 0}, {"path": "/no 'such'"}]
    asked = order(world, vm_tmp, libvirt_daemons, keep=True, files=wrong, counts=few, commands=late, ports=[22])
    evidence = drill_point(world.repository, point, asked)
    assert evidence.verdict == "failed"
    found = {check.name: check.found for check in evidence.failed}
    assert found["file /data/hello"] == f"sha256 {hashlib.sha256(FILE).hexdigest()}"
    assert found["command sleep 60"].startswith("no exit code")
    assert found["command cat /data/hello"] == "exit 0: what must come back"
    assert found["port 22"] == "the guest has no address"
    assert found["clock"].startswith("+86")
    assert set(found) == {
        "clock", "file /data/hello", "file /data/none", "command sleep 60", "command cat /data/hello", "port 22",
        "count /data", "count /no 'such'",
    }  # fmt: skip
    assert len(evidence.failed) == len(found) + 1, "both counts of /data"
    assert (found["count /data"], found["count /no 'such'"]) == ("1 files", "0 files")
    assert_kept_until_cleared(world, libvirt_daemons)
    assert_nothing_left(world, vm_tmp, libvirt_daemons)


@pytest.fixture
def isolated(libvirt_daemons: str) -> Iterator[str]:
    """A libvirt network that leads nowhere, with this host at 192.168.219.1."""
    requires("root")
    Path("/var/lib/libvirt/dnsmasq").mkdir(exist_ok=True)  # libvirt notes addresses there; Debian makes it with dnsmasq
    connection = libvirt.open(libvirt_daemons)
    network = connection.networkCreateXML(
        "<network><name>lab-alone</name><bridge name='labalone0' delay='0'/><dns enable='no'/>"
        "<ip address='192.168.219.1' netmask='255.255.255.0'/></network>"
    )
    yield network.name()
    network.destroy()
    connection.close()


@pytest.mark.guest
@pytest.mark.libvirt
def test_a_service_of_a_guest_on_an_isolated_network_answers(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str, isolated: str
) -> None:
    def add_network(domain: ET.Element) -> None:
        card = ET.SubElement(domain.find("devices") or domain, "interface", type="bridge")
        ET.SubElement(card, "source", bridge="br-of-production")
        ET.SubElement(card, "model", type="virtio")

    commands = [
        {"run": "ip addr add 192.168.219.2/24 dev eth0 && ip link set eth0 up"},
        {"run": "nc -l -p 5432 >/dev/null 2>&1 </dev/null &"},
    ]
    point = point_of(world, old, edit=add_network)
    asked = order(world, vm_tmp, libvirt_daemons, network=isolated, commands=commands, ports=[5432, 5433])
    evidence = drill_point(world.repository, point, asked)
    assert check_of(evidence, "port 5432").found == "192.168.219.2 answers"
    assert [check.name for check in evidence.failed] == ["port 5433"], "where nothing listens"
    assert_nothing_left(world, vm_tmp, libvirt_daemons)


@pytest.mark.guest
@pytest.mark.libvirt
def test_a_drill_that_boots_from_the_repository(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str
) -> None:
    requires("nbdkit-python")
    point = point_of(world, old)
    files = [{"path": "/data/hello", "sha256": hashlib.sha256(FILE).hexdigest()}]
    evidence = drill_point(world.repository, point, order(world, vm_tmp, libvirt_daemons, method="boot", files=files))
    assert [check for check in evidence.checks if not check.ok] == []
    assert (evidence.verdict, evidence.alive) == ("passed", "agent")
    assert set(evidence.seconds) == {"plan", "serve", "define", "start", "alive", "checks"}
    assert [(disk.target, disk.size_found) for disk in evidence.disks] == [("vda", 16 * MIB)]
    assert_nothing_left(world, vm_tmp, libvirt_daemons)


@pytest.mark.libvirt
def test_a_disk_that_cannot_be_read_ends_a_drill_from_the_repository_at_once(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str
) -> None:
    """The packs are there, so that nothing is known before the guest reads; no sign of life is waited for."""
    requires("nbdkit-python")
    point = point_of(world, old)
    repository = world.repository
    chunks = [chunk for rows in repository.map(point.disk("vda")).rows() for chunk in chunk_ids(rows)]
    for key in {found.pack.key for found in repository.locate(chunks).values()}:
        pack = world.settings.hot / key
        pack.chmod(0o600)
        pack.write_bytes(bytes(pack.stat().st_size))
    evidence = drill_point(world.repository, point, order(world, vm_tmp, libvirt_daemons, method="boot"))
    assert [check.name for check in evidence.failed] == ["alive", "reads"]
    assert check_of(evidence, "alive").found.startswith("the VM was stopped as a disk could not be read")
    assert "disk vda at byte " in check_of(evidence, "reads").found
    assert_nothing_left(world, vm_tmp, libvirt_daemons)


@pytest.mark.libvirt
def test_a_tier_that_does_not_answer_in_time_says_nothing_about_the_point(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the VM runs, the packs are pipes that nobody fills: what is read from them then waits."""
    requires("nbdkit-python")
    boots = point_of(world, old)
    far = random.Random(3).randbytes(16 * MIB)  # beyond what is read ahead of the file system
    artifacts = {each.name: world.repository.artifact(each) for each in boots.artifacts}
    point = world.add({"vda": world.models[boots.id]["vda"] + far}, artifacts)
    held: list[Copy] = []
    readers: list[subprocess.Popen[bytes]] = []

    def serve(*arguments: Any) -> Copy:
        held.append(served(*arguments))
        return held[0]

    def no_sign(_watch: Watch) -> Life:
        for pack in (world.settings.hot / "data").rglob("*"):
            if pack.is_file():
                pack.unlink()
                os.mkfifo(pack)
        server = held[0].server
        assert server is not None
        read = ["qemu-io", "-r", "-f", "raw", "-c", f"read {28 * MIB} {MIB}", server.uris()["vda"]]
        readers.append(subprocess.Popen(read, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_for(lambda: server.longest_read >= 0.1, "the read to wait")
        return Life("", "nothing within the limits")

    monkeypatch.setattr(drill, "served", serve)
    monkeypatch.setattr(drill_copy, "LONG_READ", 0.1)
    monkeypatch.setattr("vmcellar.restore.serve._STOP_SECONDS", 0.1)
    monkeypatch.setattr(Watch, "life", no_sign)
    with pytest.raises(PermanentError, match="says nothing about the point"):
        drill_point(world.repository, point, order(world, vm_tmp, libvirt_daemons, method="boot"))
    assert readers[0].wait() != 0
    assert_nothing_left(world, vm_tmp, libvirt_daemons)


def assert_kept_until_cleared(world: World, uri: str) -> None:
    """A drill that is to be kept stays, and its VM runs, until its removal is asked for."""
    (kept,) = drill_journal.journals(world.settings.state)
    assert drill_journal.clear(world.settings.state) == []
    connection = libvirt.open(uri)
    inside = GuestInside(connection, kept.name)
    inside.check("test -e /data/hello")
    inside.close_channel()
    connection.close()
    assert drill_journal.clear(world.settings.state, kept=True) == [kept.name]


@pytest.mark.guest
@pytest.mark.libvirt
def test_without_an_agent_the_serial_console_tells(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str
) -> None:
    def print_to_serial(domain: ET.Element) -> None:
        for channel in domain.findall("devices/channel"):
            if channel.find("target[@name='org.qemu.guest_agent.0']") is not None:
                domain.find("devices").remove(channel)  # type: ignore[union-attr]  # it has devices
        arguments = domain.find("os/cmdline")
        assert arguments is not None
        arguments.text = "console=ttyS0 loglevel=7 panic=1"

    point = point_of(world, old, edit=print_to_serial)
    rules: dict[str, Any] = {"serial_text": "Run /init as init process", "serial": "60s", "commands": [{"run": "true"}]}
    evidence = drill_point(world.repository, point, order(world, vm_tmp, libvirt_daemons, **rules))
    assert evidence.alive == "serial"
    assert [check.name for check in evidence.failed] == ["command true"], "a check that cannot be done is not passed"
    assert_nothing_left(world, vm_tmp, libvirt_daemons)


@pytest.mark.libvirt
def test_a_guest_that_does_not_boot_is_found(world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str) -> None:
    point = point_of(world, old, {"initrd": b"no archive" * 4096})
    evidence = drill_point(world.repository, point, order(world, vm_tmp, libvirt_daemons, **QUICK))
    assert (evidence.verdict, evidence.alive, evidence.rto) == ("failed", "", None)
    assert [check.name for check in evidence.failed] == ["alive"]
    assert_nothing_left(world, vm_tmp, libvirt_daemons)


@pytest.mark.libvirt
def test_a_point_whose_bytes_are_damaged_is_a_finding(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str
) -> None:
    point = point_of(world, old)
    for pack in (world.settings.hot / "data").rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            pack.write_bytes(bytes(len(pack.read_bytes())))
    evidence = drill_point(world.repository, point, order(world, vm_tmp, libvirt_daemons))
    assert [check.name for check in evidence.failed] == ["restore"]
    assert_nothing_left(world, vm_tmp, libvirt_daemons)


@pytest.mark.libvirt
def test_what_this_host_cannot_do_says_nothing_about_the_point(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str
) -> None:
    point = point_of(world, old)
    with pytest.raises(PermanentError, match="no libvirt network nowhere"):
        drill_point(world.repository, point, order(world, vm_tmp, libvirt_daemons, network="nowhere"))
    assert_nothing_left(world, vm_tmp, libvirt_daemons)
    bare = replace(point, artifacts=())
    with pytest.raises(PermanentError, match="no domain XML"):
        drill_point(world.repository, bare, order(world, vm_tmp, libvirt_daemons))


KILLED = """
import os, sys
from pathlib import Path
from vmcellar.restore import drill, drill_alive
from tests.restore import test_drill
from tests.restore.world import Settings
from vmcellar.crypto import passphrase
from vmcellar.repository.repository import Repository
state, hot, folder, uri, point, where = sys.argv[1:]
def die(*_args, **_kw):
    os.kill(os.getpid(), 9)
if where == "alive":
    drill_alive.Watch.life = die
else:
    setattr(drill, where, die)
settings = Settings(Path(state), Path(hot))
repository = Repository.open(settings)
order = drill.DrillOrder(uri, Path(state), Path(folder))
drill.drill_point(repository, repository.point(point), order)
"""


@pytest.mark.libvirt
@pytest.mark.parametrize("where", ["restored", "define_domain", "alive"])
def test_what_a_killed_drill_leaves_is_cleared_by_the_next(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str, where: str
) -> None:
    point = point_of(world, old)
    state = world.settings.state
    arguments = [state, world.settings.hot, vm_tmp, libvirt_daemons, point.id, where]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    (left,) = drill_journal.journals(state)
    assert Path(left.folder).exists()
    assert drill_journal.clear(state) == [left.name]
    assert_nothing_left(world, vm_tmp, libvirt_daemons)


@pytest.mark.libvirt
def test_clearing_touches_nothing_that_is_not_a_drills_own(
    world: World, old: LabGuest, vm_tmp: Path, libvirt_daemons: str
) -> None:
    """A journal that names a VM of the user's, by whatever accident."""
    state, folder = world.settings.state, vm_tmp / "drills" / "mine"
    folder.mkdir(parents=True)
    (folder / "precious").write_text("data")
    with drill_journal.drilling(state, Journal(old.name, "p", "vm", libvirt_daemons, str(vm_tmp / "new"), keep=True)):
        assert drill_journal.clear(state, kept=True) == [], "it lives"
    with pytest.raises(PermanentError, match="which is not the drill's"):
        drill_journal.clear(state, kept=True)
    assert old.domain.name() == old.name
    path = state / "drills" / "lab-none.json"
    path.write_text(
        f'{{"name": "lab-none", "point": "p", "vm": "v", "uri": "{libvirt_daemons}", '
        f'"folder": "{folder}", "keep": false}}'
    )
    with pytest.raises(PermanentError, match="is not the folder of drill"):
        drill_journal.clear(state)
    assert (folder / "precious").read_text() == "data"
    wait_for(lambda: not old.domain.isActive(), "the guest to be as it was")
