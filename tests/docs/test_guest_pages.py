"""README, restore.md and operators.md, typed from top to bottom beside a guest that runs.

The guest stands for web1: a disk with an ext4 that holds /etc/nginx and /home, and one without a file system.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
import pytest
import yaml

from lab.disks import MIB, DiskSpec
from lab.filesystems import use_working_accelerator
from lab.guest import UNDEFINE, LabGuest
from lab.paths import vm_folder
from lab.require import requires
from lab.shellcommand import call
from tests.docs.playing import Scene, check, play
from tests.docs.terminal import NOBODY, Terminal
from vmcellar.cli.commands import files
from vmcellar.config import load_config
from vmcellar.repository.repository import Repository
from vmcellar.restore.boot_journal import begin, new_entry

pytestmark = [pytest.mark.libvirt, pytest.mark.guest]

DISKS = (DiskSpec("vda", 32 * MIB, ext4=True), DiskSpec("vdb", 8 * MIB))
NGINX = "worker_processes 1;\n"


@pytest.fixture(scope="module")
def web1(libvirt_daemons: str) -> Iterator[LabGuest]:
    """The guest."""
    for name in ("root", "nbdkit-python", "libguestfs"):
        requires(name)
    with vm_folder("docs") as folder, LabGuest(folder, DISKS) as guest:
        guest.start()
        guest.check("mkdir -p /data/etc/nginx /data/home/ann; echo hello >/data/home/ann/letter")
        guest.check(f"echo '{NGINX.strip()}' >/data/etc/nginx/nginx.conf")
        guest.write("vdb", 0, MIB, seed=3)
        guest.sync()
        yield guest
    assert libvirt_daemons


def named_after(guest: LabGuest) -> list[libvirt.virDomain]:
    return [each for each in guest.connection.listAllDomains() if each.name().startswith(f"{guest.name}-")]


def remove(domain: libvirt.virDomain) -> None:
    if domain.isActive():
        domain.destroy()
    domain.undefineFlags(UNDEFINE)


@pytest.fixture
def terminal(web1: LabGuest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    """One of a host of its own, with an empty repository's place; the guest's disks are where libvirt has them."""
    use_working_accelerator()
    with vm_folder("host") as folder, appliance_that_stays(monkeypatch):
        made = Terminal(folder, monkeypatch, capsys, {"web1": web1.name, "10809": str(free_port())})
        try:
            yield made
        finally:
            made.close()
            for domain in named_after(web1):
                remove(domain)


@contextlib.contextmanager
def appliance_that_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`vmcellar files` starts an appliance for each call, of ten seconds here; those of one page share one."""
    there: dict[str, Any] = {}
    real = files.opened
    with contextlib.ExitStack() as stack:

        @contextlib.contextmanager
        def opened(opening: Any, point: str, targets: tuple[str, ...]) -> Iterator[Any]:
            if point not in there:
                there[point] = stack.enter_context(real(opening, point, targets))
            yield there[point]
            there[point].unmount()

        monkeypatch.setattr(files, "opened", opened)
        yield


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def complete(terminal: Terminal, **sections: Any) -> None:
    """What a host of the laboratory needs besides what `init` wrote: places of its own, and the job of web1."""
    path = terminal.folder / "etc/vmcellar/vmcellar.yaml"
    document = {
        **yaml.safe_load(path.read_text()),
        "scratch": str(terminal.folder / "var/lib/libvirt/vmcellar"),
        "landing": {"dir": str(terminal.folder / "run/landing"), "budget": 256 * MIB},
        "backups": [{"name": "web", "domains": [terminal.words["web1"]], "rpo": "24h", "rto": "1h"}],
        **sections,
    }
    path.write_text(yaml.safe_dump(document))


def doctor(terminal: Terminal) -> Scene:
    """A Prefect server that is named and does not answer is a fault, and none is named on a new host."""
    return Scene(
        ["ok repository", f"domain {terminal.words['web1']} "],
        before=lambda: terminal.monkeypatch.delenv("PREFECT_API_URL"),
        after=lambda: terminal.monkeypatch.setenv("PREFECT_API_URL", NOBODY),
    )


def test_readme(terminal: Terminal, web1: LabGuest) -> None:
    back = terminal.folder / "var/lib/libvirt/images/back"

    def restored() -> None:
        assert {path.name for path in back.iterdir()} >= {"vda.qcow2", "vdb.qcow2", "domain.xml"}
        shutil.rmtree(back)

    def runs() -> None:
        domain = web1.connection.lookupByName(f"{web1.name}-boot")
        assert domain.isActive()
        remove(domain)

    init = "vmcellar --config /etc/vmcellar/vmcellar.yaml init --tier hot=/srv/vmcellar --passphrase-file /etc/vmcellar/passphrase"  # noqa: E501
    play(
        "README.md",
        terminal,
        {
            "vmcellar --install-completion": Scene(["completion installed"]),
            init: Scene(["repository"], after=partial(complete, terminal)),
            "vmcellar doctor": doctor(terminal),
            "vmcellar backup web1": Scene([f"{web1.name}: full "]),
            "vmcellar drill web1@latest": Scene(["passed"]),
            "vmcellar list web1": Scene([web1.name]),
            "vmcellar show web1@latest": Scene(["vdb"]),
            "vmcellar restore web1@latest --to /var/lib/libvirt/images/back": Scene(after=restored),
            "vmcellar boot web1@latest": Scene(after=runs),
        },
    )


def a_host(terminal: Terminal, web1: LabGuest) -> None:
    """A host whose repository has one backup of web1."""
    (terminal.folder / "etc/vmcellar").mkdir()
    (terminal.folder / "etc/vmcellar/passphrase").write_text("of a test\n")
    (terminal.folder / "etc/vmcellar/passphrase").chmod(0o600)
    for command in (
        "vmcellar --config /etc/vmcellar/vmcellar.yaml init --tier hot=/srv/vmcellar "
        "--passphrase-file /etc/vmcellar/passphrase",
        "vmcellar backup web1",
    ):
        check(command, terminal.type(command))
        complete(terminal)
    assert web1.domain.isActive()


@dataclass
class Restoring:
    """What lies around the commands of restore.md: images that are not as the point, a VM that is on or off."""

    terminal: Terminal
    web1: LabGuest

    def __post_init__(self) -> None:
        """Disks of the point as they restore, by target, and others of their size at the places of the page."""
        self.point = self.restored("point")
        self.qcow2 = self._made("var/lib/libvirt/images/web1.qcow2", "qcow2", "vda")
        self.device = self._made("dev/vg0/web1", "raw", "vda")
        self.data = self._made("srv/web1-data.raw", "raw", "vdb")

    def restored(self, name: str) -> dict[str, Path]:
        """Raw images of the newest point."""
        check("restore", self.terminal.type(f"vmcellar restore web1@latest --to {name} --format raw"))
        return {target: self.terminal.home / name / f"{target}.raw" for target in ("vda", "vdb")}

    def _made(self, place: str, form: str, target: str) -> Path:
        path = self.terminal.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        call(["qemu-img", "create", "-q", "-f", form, path, str(self.point[target].stat().st_size)])
        return path

    def one_is_equal(self) -> None:
        """The first `--onto`."""
        same(self.point["vda"], self.qcow2, "qcow2")

    def both_are_equal(self) -> None:
        """The second `--onto`."""
        same(self.point["vda"], self.device)
        same(self.point["vdb"], self.data)

    def off(self) -> None:
        """The VM is off, and not as it was."""
        self.web1.poke("vdb", 2 * MIB, MIB, seed=4)
        self.web1.destroy()

    def on(self) -> None:
        """The VM runs, and its guest writes."""
        self.web1.start()
        self.web1.write("vdb", 3 * MIB, MIB, seed=5)

    def came_back(self) -> None:
        """The VM is what it was in the point, and off."""
        assert not self.web1.domain.isActive()
        for target, image in self.point.items():
            same(image, self.web1.paths[target], "qcow2")

    def left(self) -> None:
        """A `boot` was killed before the VM was there; one of before is done with."""
        for domain in named_after(self.web1):
            remove(domain)
        name, config = f"{self.web1.name}-now", load_config(self.terminal.folder / "etc/vmcellar/vmcellar.yaml")
        folder = self.terminal.folder / "var/lib/libvirt/images" / name
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.closing(Repository.open(config)) as repository:
            newest = repository.point(f"{self.web1.name}@latest").id
        entry = new_entry(name, str(uuid.uuid4()), newest, self.web1.name, folder, ("vda", "vdb"))
        with begin(config.state, entry):
            pass

    def tarred(self) -> None:
        """The archive holds the folder."""
        with tarfile.open(self.terminal.home / "home.tar") as archive:
            assert "./ann/letter" in archive.getnames()


def same(expected: Path, found: Path, form: str = "raw") -> None:
    call(["qemu-img", "compare", "-f", "raw", "-F", form, expected, found])


def test_restore(terminal: Terminal, web1: LabGuest) -> None:
    a_host(terminal, web1)
    lab = Restoring(terminal, web1)
    terminal.words |= {"20270115T080100Z": point_of(terminal), "vda1": "vda"}
    serving, now = "serving; Ctrl-C ends it", f"{web1.name}-now"
    play(
        "restore.md",
        terminal,
        {
            "vmcellar restore web1@latest --onto vda=/var/lib/libvirt/images/web1.qcow2": Scene(
                answers=["/var/lib/libvirt/images/web1.qcow2"], after=lab.one_is_equal
            ),
            "vmcellar restore web1@latest --onto vda=/dev/vg0/web1 --onto vdb=/srv/web1-data.raw": Scene(
                answers=["/dev/vg0/web1", "/srv/web1-data.raw"], after=lab.both_are_equal
            ),
            "vmcellar restore 20270115T080100Z --in-place": Scene(
                [f"virsh start {web1.name}", "kept: "], answers=["web1"], before=lab.off, after=lab.came_back
            ),
            "vmcellar restore 20270115T080100Z --in-place --stop": Scene(
                ["is pinned", "what .* was before is point"], answers=["web1"], before=lab.on, after=lab.came_back
            ),
            "vmcellar boot web1@latest --name web1-now --network isolated": Scene(["on disks of its own"]),
            "vmcellar boot --status": Scene([f"{now} preparing .* left"], before=lab.left),
            "vmcellar boot --finish web1-now": Scene([f"VM {now} runs on disks of its own"]),
            "vmcellar boot --abort web1-now": Scene(["removed"], answers=["web1-now"], before=lab.left),
            "vmcellar files web1@latest ls": Scene(["vda ext4"]),
            "vmcellar files web1@latest ls /etc": Scene(["nginx"]),
            "vmcellar files web1@latest get /etc/nginx .": Scene(["copied to"]),
            "vmcellar files web1@latest tar vda1:/home home.tar": Scene(after=lab.tarred),
            "vmcellar files web1@latest shell": Scene(["letter"], answers=["ls /home/ann", "\x04"]),
            "vmcellar serve web1@latest": Scene(until=serving),
            "vmcellar serve web1@latest --disk vda --socket /run/web1.sock": Scene(until=serving),
            "vmcellar serve web1@latest --port 10809": Scene(until="nbd://127.0.0.1"),
        },
    )
    assert (terminal.home / "nginx/nginx.conf").read_text() == NGINX
    newest = lab.restored("newest")["vda"]
    same(newest, terminal.home / "vda.raw")
    same(newest, terminal.home / "vda.qcow2", "qcow2")


def point_of(terminal: Terminal) -> str:
    (point,) = json.loads(terminal.type("vmcellar list web1 --json").out)
    return str(point["id"])


def test_operators(terminal: Terminal, web1: LabGuest) -> None:
    """The host that was lost is this one: its VM is gone before it comes back from the repository."""
    if not web1.domain.isActive():
        web1.start(paused=True)
    (terminal.home / "secret").write_text("of a test\n")
    (terminal.home / "secret").chmod(0o600)
    terminal.monkeypatch.setenv("VMCELLAR_CONFIG", str(terminal.folder / "etc/vmcellar/vmcellar.yaml"))
    (terminal.folder / "etc/vmcellar").mkdir()

    images = terminal.folder / "var/lib/libvirt/images"

    def another_host() -> None:
        """With the configuration alone: no state, and no VM."""
        for name in ("var/lib/libvirt/vmcellar", "etc/vmcellar/vmcellar-state"):
            shutil.rmtree(terminal.folder / name)

    def lose() -> None:
        web1.destroy()
        web1.domain.undefineFlags(UNDEFINE)

    def back() -> None:
        web1.domain = web1.connection.lookupByName(web1.name)
        assert (terminal.folder / "var/lib/libvirt/images" / web1.name / "vda.qcow2").exists()

    def asked_for() -> None:
        """The names that the sections about a restore and about keys use."""
        call(["qemu-img", "create", "-q", "-f", "qcow2", images / "web1-data.qcow2", str(8 * MIB)])
        (terminal.home / "new").write_text("another\n")
        (terminal.home / "new").chmod(0o600)
        (terminal.home / "sheet").write_text(terminal.type("vmcellar key export").out)
        newest = json.loads(terminal.type("vmcellar list web1 --json").out)[-1]["id"]
        terminal.words |= {"POINT": newest, "DIR": "disk", "FILE": "sheet", "NEW": "new"}

    def warm() -> None:
        tiers = {"hot": str(terminal.folder / "srv/vmcellar"), "warm": str(terminal.folder / "srv/disks")}
        complete(terminal, tiers=tiers, placement={"hot": "7d", "warm": "rest", "copies": 2})
        check("add", terminal.type("vmcellar tiers add warm"))

    elsewhere = partial(terminal.words.update, DIR="rest")
    new_key = partial(complete, terminal, key={"file": str(terminal.home / "new")})
    play(
        "operators.md",
        terminal,
        {
            "vmcellar init": Scene(
                ["repository"],
                answers=["/srv/vmcellar", "/root/secret"],
                after=partial(complete, terminal),
            ),
            "vmcellar doctor": doctor(terminal),
            "vmcellar backup web1": Scene([f"{web1.name}: full "], after=partial(running, web1)),
            "vmcellar prove web1@latest": Scene(["passed"]),
            "vmcellar list": Scene([web1.name], before=another_host),
            "vmcellar restore web1@latest --define web1": Scene(before=lose, after=back),
            "vmcellar verify --all": Scene(before=warm),
            "vmcellar tiers": Scene(["warm"]),
            "vmcellar tiers promote --help": Scene(["mirror"]),
            "vmcellar tiers move": Scene(["copied|moved|copies"]),
            "vmcellar config check": Scene(["valid"], after=asked_for),
            "vmcellar show POINT": Scene(["verified"]),
            "vmcellar restore POINT --plan": Scene(["packs"]),
            "vmcellar restore POINT --in-place": Scene(
                [f"virsh start {web1.name}"], answers=["web1"], before=web1.destroy
            ),
            "vmcellar boot POINT --name web1-now": Scene(["on disks of its own"]),
            "vmcellar restore POINT --to DIR --disk vdb": Scene(["vdb"], after=elsewhere),
            "vmcellar restore POINT --onto vdb=/var/lib/libvirt/images/web1-data.qcow2": Scene(
                answers=["/var/lib/libvirt/images/web1-data.qcow2"]
            ),
            "vmcellar key list": Scene(["passphrase"]),
            "vmcellar key rotate --passphrase-file NEW": Scene(
                ["new key", "now point key: "],
                after=new_key,
            ),
            "vmcellar locks": Scene(),
        },
    )


def running(guest: LabGuest) -> None:
    assert guest.domain.isActive()
