"""The main job on a real guest, end to end: `./run demo`.

Boots the small guest, backs it up live in full through the Prefect flow, changes its disks (writes, zeroes,
discards), backs up incrementally, restores both points, compares every disk with a reference of that instant that
QEMU itself gave, boots the restored VM, and reports. Exit code 1 when anything differs. Leaves the demo's folder,
with the runs for the UI.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
from rich.console import Console
from rich.table import Table

from lab import daemons, reference
from lab.guest import LabGuest
from lab.inside import GuestInside
from lab.paths import lab_dir, vm_folder
from lab.prefect_server import PrefectServer
from lab.shellcommand import LabError
from lab.waiting import wait_for

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """One backup of the demo, its reference and its restore, in seconds."""

    point: dict[str, Any]
    reference: dict[str, Path]
    backup_seconds: float
    restore_seconds: float = 0.0
    equal: int = 0


class Demo:
    """The demo's folder, its command line, its server."""

    def __init__(self, folder: Path, server: PrefectServer, console: Console) -> None:
        self.folder = folder
        self.server = server
        self.console = console
        self.config = folder / "vmcellar.yaml"

    def vmcellar(self, *arguments: str) -> str:
        """Run our own command as a user would; LabError with its words when it fails."""
        done = subprocess.run(
            self._command(arguments), env=self._environment(), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise LabError(f"vmcellar {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def backup(self, guest: LabGuest, name: str) -> Step:
        """Back up; while the backup job lives, hold our process still and let QEMU give a reference of that
        instant.
        """
        begun = time.monotonic()
        command = self._command(("backup", guest.name, "--json"))
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=self._environment(), stdout=pipe, stderr=pipe, text=True) as process:
            begun_or_ended = partial(_job_lives_or_ended, guest.domain, process)
            wait_for(begun_or_ended, "the backup job", seconds=120, pause=0.005)
            process.send_signal(signal.SIGSTOP)
            held = time.monotonic()
            try:
                images = _reference(guest.domain, self.folder / name)
            finally:
                process.send_signal(signal.SIGCONT)
            held = time.monotonic() - held
            out, err = process.communicate(timeout=300)
        if process.returncode != 0:
            raise LabError(f"the backup failed: {err[-2000:]}")
        return Step(json.loads(out)[0], images, time.monotonic() - begun - held)

    def restore_and_compare(self, step: Step) -> Step:
        """Restore a point and compare each disk, byte for byte, with its reference."""
        folder = self.folder / f"restored-{step.point['id']}"
        begun = time.monotonic()
        self.vmcellar("restore", step.point["id"], "--to", str(folder))
        seconds = time.monotonic() - begun
        found = {target: folder / f"{target}.qcow2" for target in step.reference}
        for wrong in reference.mismatches(step.reference, found, "qcow2"):
            self.console.print(f"[red]{step.point['id']}: {wrong.target} differs: {wrong.problem}")
        equal = sum(not reference.image_difference(step.reference[t], found[t], "qcow2") for t in found)
        return Step(step.point, step.reference, step.backup_seconds, seconds, equal)

    def boot_restored(self, point: str, name: str) -> float:
        """Define and start the restored VM; seconds from `restore` until commands run inside it and its agent
        answers.
        """
        begun = time.monotonic()
        images = self.folder / "boot"
        self.vmcellar("restore", point, "--define", name, "--to", str(images))
        connection = libvirt.open(daemons.URI)
        domain = connection.lookupByName(name)
        try:
            domain.create()
            GuestInside(connection, name).wait_ready()
            return time.monotonic() - begun
        finally:
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
            connection.close()
            shutil.rmtree(images)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [str(Path(sys.executable).parent / "vmcellar"), "--config", str(self.config), *arguments]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.server.environment}


def _job_lives_or_ended(domain: libvirt.virDomain, process: subprocess.Popen[str]) -> bool:
    return _job_lives(domain) or process.poll() is not None


def _job_lives(domain: libvirt.virDomain) -> bool:
    try:
        domain.backupGetXMLDesc()
    except libvirt.libvirtError:
        return False
    return True


def _reference(domain: libvirt.virDomain, folder: Path) -> dict[str, Path]:
    """The reference of the live job, as soon as libvirt, which goes on beginning it, has its exports ready."""
    found: dict[str, Path] = {}
    problem = LabError("no reference was tried")

    def ready() -> bool:
        nonlocal problem
        try:
            found.update(reference.of_job(domain, folder))
        except LabError as error:
            problem = error
        return bool(found)

    try:
        wait_for(ready, "a reference of the live backup job", seconds=30)
    except LabError as error:
        raise LabError(f"{error}: {problem}") from problem
    return found


def change(guest: LabGuest) -> None:
    """Writes, zeroes and discards on every disk: what an incremental must see."""
    guest.write("vdb", offset=3 * MIB, length=2 * MIB, seed=21)
    guest.zero("vdb", offset=0, length=MIB)
    guest.discard("vdc", offset=4 * MIB, length=2 * MIB)
    guest.write("sda", offset=20 * MIB, length=MIB, seed=22)
    guest.delete("first")
    guest.fill("second", 6 * MIB, seed=23)
    guest.fstrim()
    guest.sync()


def prepare(guest: LabGuest) -> None:
    """First content of every disk."""
    guest.fill("first", 12 * MIB, seed=11)
    guest.write("vdb", offset=0, length=16 * MIB, seed=12)
    guest.write("vdc", offset=0, length=24 * MIB, seed=13)
    guest.write("sda", offset=8 * MIB, length=8 * MIB, seed=14)
    guest.sync()


def report(console: Console, steps: list[Step], boot_seconds: float) -> None:
    """The short report: a column per point, so that it fits a narrow terminal."""
    table = Table(title="vmcellar demo")
    table.add_column("")
    for step in steps:
        table.add_column(step.point["kind"], justify="right")
    rows: dict[str, Callable[[Step], str]] = {
        "point": lambda step: str(step.point["id"]),
        "consistency": lambda step: str(step.point["consistency"]),
        "read from the VM": lambda step: _size(step, "bytes_read"),
        "changed": lambda step: _size(step, "bytes_changed"),
        "stored, sealed": lambda step: _size(step, "bytes_stored"),
        "stored per byte read": lambda step: f"{step.point['bytes_stored'] / max(1, step.point['bytes_read']):.2f}",
        "guest frozen": lambda step: f"{step.point['freeze_seconds']:.2f} s",
        "backup command": lambda step: f"{step.backup_seconds:.1f} s",
        "restore command": lambda step: f"{step.restore_seconds:.1f} s",
        "disks equal": lambda step: f"{step.equal} of {len(step.reference)}",
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(step) for step in steps))
    console.print(table)
    console.print(f"the restored VM answered {boot_seconds:.1f} s after `restore` began (software emulation included)")


def _size(step: Step, name: str) -> str:
    return f"{step.point[name] / MIB:.1f} MiB"


def run(folder: Path, console: Console) -> bool:
    """The whole demo; True when every disk of every point came back equal."""
    (folder / "passphrase").write_text("demo only\n")
    (folder / "passphrase").chmod(0o600)
    with PrefectServer(folder / "prefect") as server, vm_folder("demo") as images, LabGuest(images) as guest:
        demo = Demo(folder, server, console)
        demo.vmcellar("init", "--tier", f"hot={folder / 'repository'}", "--passphrase-file", str(folder / "passphrase"))
        console.print("booting the guest")
        guest.start()
        prepare(guest)
        console.print("full backup, live")
        steps = [demo.backup(guest, "reference-full")]
        change(guest)
        console.print("incremental backup, live")
        steps.append(demo.backup(guest, "reference-incremental"))
        console.print("restoring both points and comparing whole disks")
        steps = [demo.restore_and_compare(step) for step in steps]
        console.print("booting the restored VM")
        boot_seconds = demo.boot_restored(steps[-1].point["id"], f"{guest.name}-restored")
        console.print("reading back and decoding all that is stored")
        demo.vmcellar("verify", "--all", "--deep")
    report(console, steps, boot_seconds)
    _say_how_to_look(console, demo)
    return all(step.equal == len(step.reference) for step in steps)


def _say_how_to_look(console: Console, demo: Demo) -> None:
    settings = {**demo.server.environment, "PREFECT_API_URL": "http://127.0.0.1:4200/api"}
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    python = shlex.quote(sys.executable)
    console.print("\nThese runs in the Prefect UI (then open http://127.0.0.1:4200):", style="bold")
    console.print(f"  {words} {python} -m prefect server start", soft_wrap=True, highlight=False)
    console.print("The points, on the command line:", style="bold")
    vmcellar = shlex.quote(str(Path(sys.executable).parent / "vmcellar"))
    console.print(f"  {vmcellar} --config {demo.config} list", soft_wrap=True, highlight=False)


def main() -> int:
    """Run the demo in a fresh folder; the exit code says whether all came back equal."""
    parser = argparse.ArgumentParser(
        prog="./run demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.parse_args()
    console = Console()
    daemons.ensure()
    folder = lab_dir() / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    try:
        equal = run(folder, console)
    except LabError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True, highlight=False)
        return 1
    finally:
        daemons.stop()
    console.print("[green]all disks of all points came back equal" if equal else "[red]NOT EQUAL")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
