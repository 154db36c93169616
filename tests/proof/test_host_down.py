"""A host loses power in mid-backup: backup, QEMU and libvirtd end at one moment, and what lay in tmpfs is gone. Then it
boots, and what the boot unit runs is run. With VMCELLAR_FAULTS=1; `tests/flows/test_host_down.py` is the same with
`vmcellar up`.

Each case stops a backup at one place and cuts the power there. QEMU had no time to save its bitmaps, so whatever the
points say, no tracker is to be trusted: the next backup that reads must read everything, say why, and lose nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import reference
from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.otherhost import OtherHost
from lab.paths import vm_folder
from lab.require import requires
from lab.waiting import wait_for
from tests.proof.cellar import MIB, Cellar, Disks, job_runs
from tests.proof.conftest import SMALL_DISKS
from tests.proof.test_host_trouble import is_stopped
from tests.proof.test_kills import PLACES, change
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="three minutes: set VMCELLAR_FAULTS=1"),
]

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deployments" / "systemd" / "vmcellar-recover.service"
SECONDS = 60
LIVE_DISKS = (DiskSpec("vda", 32 * MIB, ext4=True), DiskSpec("vdb", 16 * MIB))
EXPORT = ("vmcellar.backup.stages:export", 1, "before")

LANDING = ("snapshot begins", "job begun, not planned", "export reads", "one segment landed", "compressed")
"""Cut where some of what was read lies in tmpfs, or nothing was read yet."""
DIRECT = {
    "packs sealed, not noted": ("vmcellar.backup.direct:DirectPath.finish", 1, "after"),
    **{
        place: PLACES[place]
        for place in ("released", "placed", "index part, no point", "point written, not tidied", "committed")
    },
}
"""Cut where chunks went straight to packs, which a power cut leaves."""
RESUMED = ("released", "index part, no point")
"""There all was in packs, and the VM let go. At "placed" that is so of some segments."""
ORDERS = ("guest is off", "guest runs")
"""While the boot unit runs: guests start with the host, before it or after it."""


@dataclass
class Powered:
    """The host, its guest that runs no code of its own, one that does, and the configuration of both."""

    host: OtherHost
    quiet: LabGuest
    live: LabGuest
    cellar: Cellar

    def stand_still(self, guest: LabGuest, at: tuple[str, int, str]) -> subprocess.Popen[bytes]:
        """A backup in a process of the host, once it stands still at the named place."""
        place, call, when = at
        options = ["--at", place, "--call", str(call), "--when", when, "--signal", "SIGSTOP"]
        command = [sys.executable, "-m", "tests.proof.runner", str(self.cellar.file), guest.name, *options]
        running = self.host.popen(command, env=os.environ, stdout=subprocess.PIPE, cwd=ROOT)
        wait_for(lambda: is_stopped(running.pid), f"the backup to stand still: {at}", seconds=SECONDS)
        return running

    def cut(self, running: subprocess.Popen[bytes]) -> None:
        """No more power, for this backup and all others of the host."""
        assert running.stdout is not None
        with running.stdout:
            self.host.power_cut()

    def backup(self, guest: LabGuest) -> tuple[RestorePoint, Disks]:
        """The point that a backup made, and its instant, copied out of its own job."""
        running = self.stand_still(guest, EXPORT)
        copy = reference.of_job(guest.domain, self.cellar.folder())
        running.send_signal(signal.SIGCONT)  # and so the program that it waits for
        said = running.communicate(timeout=SECONDS)[0].decode()
        assert running.returncode == 0, said
        made = json.loads(said.strip().splitlines()[-1])["point"]
        (point,) = [each for each in self.cellar.points(guest) if each.id == made]
        return point, copy

    def boot(self) -> None:
        """Up again; guests are off, as none of them is started with the host."""
        self.host.boot()
        for guest in (self.quiet, self.live):
            guest._reconnect_if_cut()
            assert not guest.domain.isActive()

    def recover(self) -> list[dict[str, str]]:
        """What the unit does at boot; what it found."""
        environment = {**os.environ, "VMCELLAR_CONFIG": str(self.cellar.file)}
        quiet = ["sh", "-c", 'exec "$@" 2>> "$0"', str(self.host.folder / "recover.log")]  # the rest is JSON
        said: list[dict[str, str]] = json.loads(self.host.run([*quiet, *boot_command(), "--json"], env=environment))
        return said


def boot_command() -> list[str]:
    """What the unit `vmcellar-recover` runs, with the program of this checkout."""
    (line,) = [each for each in UNIT.read_text().splitlines() if each.startswith("ExecStart=")]
    program, *arguments = shlex.split(line.removeprefix("ExecStart="))
    assert Path(program).name == "vmcellar"
    return [sys.executable, "-m", "vmcellar.cli.main", *arguments]


@pytest.fixture(scope="module")
def powered(libvirt_daemons: str) -> Iterator[Powered]:
    """A host that is up, and whose guests are off."""
    assert libvirt_daemons
    requires("root")
    with vm_folder("power") as folder:
        base = folder / "cellar"
        volatile = (base / "scratch", base / "landing")
        with (
            OtherHost(folder, "power", volatile=volatile) as host,
            LabGuest(folder, SMALL_DISKS, uri=host.uri) as quiet,
            LabGuest(folder, LIVE_DISKS, uri=host.uri) as live,
        ):
            made = Powered(host, quiet, live, Cellar(base, {"libvirt": {"uri": host.uri}, "limits": {"segment": MIB}}))
            yield made
            if host.is_off:
                made.boot()  # guests are removed by its libvirt


@pytest.fixture
def landing(powered: Powered) -> Powered:
    """Everything that is read lands."""
    powered.cellar = powered.cellar.with_settings(landing={"direct": 0})
    return powered


@pytest.fixture
def direct(powered: Powered) -> Powered:
    """Chunks go straight to their packs."""
    powered.cellar = powered.cellar.with_settings(landing={})
    return powered


@pytest.mark.parametrize(("place", "order"), [*zip(LANDING, itertools.cycle(ORDERS), strict=False)])
def test_power_is_cut_while_what_was_read_lies_in_tmpfs(landing: Powered, place: str, order: str) -> None:
    cut = cut_at(landing, PLACES[place])
    found = up_again(landing, order)
    assert "resumable" not in {each["action"] for each in found}, "nothing of it outlived the host"
    assert landing.cellar.leftovers() == []
    assert not next_backups(landing, cut)


@pytest.mark.parametrize(("place", "order"), [*zip(DIRECT, itertools.cycle(ORDERS), strict=False)])
def test_power_is_cut_while_what_was_read_lies_in_packs(direct: Powered, place: str, order: str) -> None:
    cut = cut_at(direct, DIRECT[place])
    up_again(direct, order)
    for point in direct.cellar.points(direct.quiet)[cut.points :]:
        direct.cellar.assert_restores(point.id, cut.disks)
    assert next_backups(direct, cut) == (place in RESUMED)


def clear_unfinished(cellar: Cellar) -> None:
    """What gc does: a file that was being written has no name yet, and nobody but the age of it says whose it is."""
    for name in Repository.open(cellar.config).tier.clear_unfinished(0):
        assert name.startswith(("put-", "adopt-"))


@dataclass(frozen=True)
class Cut:
    """The disks at the instant of the backup that the cut befell, its run, and how many points there were before."""

    disks: Disks
    run: list[str]
    points: int


def cut_at(powered: Powered, at: tuple[str, int, str]) -> Cut:
    """The host goes down in the midst of an incremental with something to read."""
    guest, cellar = powered.quiet, powered.cellar
    if not guest.domain.isActive():
        guest.start(paused=True)
    if not cellar.points(guest):
        change(guest)
        powered.backup(guest)
    change(guest)
    points, disks = len(cellar.points(guest)), cellar.reference(guest)
    powered.cut(powered.stand_still(guest, at))
    return Cut(disks, [path.name for path in cellar.config.state.glob("runs/*/*")], points)


def up_again(powered: Powered, order: str) -> list[dict[str, str]]:
    """The boot, with the unit before the guest's start or after it; what the unit found."""
    powered.boot()
    if order == "guest is off":
        found = powered.recover()
        powered.quiet.start(paused=True)
    else:
        powered.quiet.start(paused=True)
        found = powered.recover()
    assert not job_runs(powered.quiet)
    clear_unfinished(powered.cellar)
    return found


def next_backups(powered: Powered, cut: Cut) -> bool:
    """The first that reads holds its own instant, and read everything; the one after it is an incremental again.
    Whether one before them went on with the run that the cut befell.
    """
    guest, cellar = powered.quiet, powered.cellar
    resumed = False
    if any(each["action"] == "resumable" for each in powered.recover()):
        change(guest)
        before = len(cellar.points(guest))
        command = [sys.executable, "-m", "tests.proof.runner", str(cellar.file), guest.name]
        powered.host.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        (point,) = cellar.points(guest)[before:]
        assert [point.run_id] == cut.run
        cellar.assert_restores(point.id, cut.disks)
        resumed = True
    for kind in ("full", "incremental"):
        change(guest)
        point, copy = powered.backup(guest)
        cellar.assert_restores(point.id, copy)
        assert point.kind == kind, point.reason
        if kind == "full":
            assert_all_read(point)
    cellar.assert_nothing_left(guest)
    return resumed


def assert_all_read(point: RestorePoint) -> None:
    """No disk of it was read by a tracker, and it says why."""
    assert point.kind == "full"
    assert "bitmap broken" in point.reason
    assert all(disk.reason for disk in point.disks)


def test_power_is_cut_while_a_guest_is_frozen(landing: Powered) -> None:
    """It comes back thawed, writes, and is backed up with its file systems frozen for a moment, as ever."""
    guest, cellar = landing.live, landing.cellar
    if landing.quiet.domain.isActive():
        landing.quiet.destroy()
    wake(guest)
    guest.poke("vdb", MIB, 4 * MIB, seed=1)
    landing.backup(guest)
    guest.poke("vdb", 2 * MIB, MIB, seed=2)
    running = landing.stand_still(guest, PLACES["job begun, not thawed"])
    assert guest.agent("guest-fsfreeze-status") == "frozen"
    landing.cut(running)
    landing.boot()
    landing.recover()
    clear_unfinished(cellar)
    assert cellar.leftovers() == []
    wake(guest)
    guest.poke("vdb", 3 * MIB, MIB, seed=3)
    point, copy = landing.backup(guest)
    cellar.assert_restores(point.id, copy)
    assert point.consistency == "quiesced"
    assert_all_read(point)
    assert guest.agent("guest-fsfreeze-status") == "thawed"
    cellar.assert_nothing_left(guest)
    guest.destroy()


def wake(guest: LabGuest) -> None:
    """Start it, and see that it is not frozen. Its shell's channel lies in its host's folders."""
    guest.domain.create()
    guest.wait_agent()
    assert guest.agent("guest-fsfreeze-status") == "thawed"
