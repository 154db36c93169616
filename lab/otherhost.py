"""A second KVM host on this machine: a libvirt, a host name, a boot and processes of its own; root alone.

    with OtherHost(folder, "north") as host, LabGuest(folder, uri=host.uri) as guest:
        guest.start(paused=True)
        worker = host.popen(["prefect", "worker", "start", ...])     # there qemu:///system is this host's libvirt
        host.power_cut()
        host.boot()

It is made of Linux namespaces (mounts, host name, processes). Its first process collects the dead and takes all others
with it when it is killed, so `power_cut` is what its name says: no process of the host, QEMU or worker, sees it coming,
what libvirt keeps in /run is gone, and the next boot has another boot id. File systems are shared with this machine but
for libvirt's folders. Source: unshare(1), nsenter(1), pid_namespaces(7).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import libvirt

from lab.shellcommand import LabError
from lab.waiting import wait_for

REAPER = Path(__file__).with_name("reaper.py")
FOLDERS = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "etc": "/etc/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}
"""What of libvirt is the host's own: its name below the host's folder, and where the host sees it."""
LIBVIRTD = ("libvirtd", "-p", "/run/libvirt/libvirtd.pid")
INIT = """set -e
hostname "$1"; shift
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift
sleep infinity &
exec "$@"
"""


class OtherHost:
    """Start it with `boot` or `with`. One thread."""

    def __init__(self, folder: Path, name: str, qemu_conf: str = "", volatile: Sequence[Path] = ()) -> None:
        """`folder` must be one that QEMU's user may enter (`lab.paths.vm_folder`); `name` is the host's name,
        `qemu_conf` further lines of its libvirt's qemu.conf, and `volatile` are folders that a power cut takes, too, as
        those of a tmpfs.
        """
        self.name = name
        self.folder = folder / name
        self._volatile = volatile
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._entered: list[subprocess.Popen[bytes]] = []
        for each in FOLDERS:
            (self.folder / each).mkdir(mode=0o755, parents=True)
        (self.folder / "etc" / "qemu").mkdir()
        (self.folder / "etc" / "qemu.conf").write_text('stdio_handler = "file"\nnamespaces = []\n' + qemu_conf)
        (self.folder / "etc" / "libvirtd.conf").write_text(f'auth_unix_rw = "none"\nhost_uuid = "{uuid.uuid4()}"\n')
        known = Path("/var/cache/libvirt/qemu")  # what libvirt learnt of QEMU takes it seconds to learn again
        if known.exists():
            shutil.copytree(known, self.folder / "cache" / "qemu")

    @property
    def uri(self) -> str:
        """This host's libvirt, from outside of it."""
        return f"qemu+unix:///system?socket={self.folder / 'run' / 'libvirt-sock'}"

    @property
    def is_off(self) -> bool:
        """Whether it was not booted since the last power cut."""
        return self._unshare is None

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.power_cut()

    def boot(self) -> None:
        """Start the host and its libvirt, with a new boot id; LabError when it does not come up."""
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        mounts = [part for each, place in FOLDERS.items() for part in (str(self.folder / each), place)]
        mounts += [str(self.folder / "boot_id"), "/proc/sys/kernel/random/boot_id"]
        spaces = ["--mount", "--propagation", "private", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        init = ["sh", "-c", INIT, "init", self.name, *mounts, "--"]
        with (self.folder / "console").open("ab") as log:
            self._unshare = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, *init, sys.executable, "-I", REAPER, *LIBVIRTD],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._is_up, f"libvirt of host {self.name}; see {self.folder / 'console'}", seconds=60)

    def power_cut(self) -> None:
        """End every process of the host at once; harmless when it is off."""
        if self._unshare is None:
            return
        self._unshare.kill()
        self._unshare.wait()
        self._unshare = None
        for entered in self._entered:
            entered.send_signal(signal.SIGCONT)  # one that waits for a program that stood still does so, too
            entered.wait()
        self._entered.clear()
        wait_for(lambda: not Path(f"/proc/{self._init}").exists(), f"host {self.name} to be off")
        shutil.rmtree(self.folder / "run")
        (self.folder / "run").mkdir(mode=0o755)
        for path in self._volatile:
            shutil.rmtree(path, ignore_errors=True)

    def restart_libvirtd(self) -> None:
        """End the host's libvirtd and start it again; its domains run on."""
        self.run(["sh", "-c", "kill $(cat /run/libvirt/libvirtd.pid)"])
        wait_for(lambda: not self._answers(), f"libvirtd of host {self.name} to end")
        with (self.folder / "console").open("ab") as log:
            self.popen(["sh", "-c", '"$@" &', "sh", *LIBVIRTD], stdout=log).wait()
        wait_for(self._answers, f"libvirtd of host {self.name} to come back", seconds=60)

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdout: IO[bytes] | int = subprocess.DEVNULL,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program on the host; its output, both kinds, goes to `stdout`. What this returns ends with the
        program, but is not it: for signals there is `signal`.
        """
        entered = subprocess.Popen(
            ["nsenter", "--target", str(self._init), "--mount", "--uts", "--pid", f"--wd={cwd or '/'}", *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env=dict(env) if env else None,
        )
        self._entered.append(entered)
        return entered

    def run(self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
        """Run a program on the host to its end; what it said. LabError when it fails."""
        process = self.popen(command, env=env, stdout=subprocess.PIPE)
        said = process.communicate()[0].decode()
        if process.returncode:
            raise LabError(f"{self.name}: {' '.join(map(str, command))}: exit code {process.returncode}: {said}")
        return said

    def signal(self, entered: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Send a signal to the program that `popen` started."""
        os.kill(_child_of(entered.pid), number)

    def _is_up(self) -> bool:
        if self._unshare is None or self._unshare.poll() is not None:
            raise LabError(f"host {self.name} ended at once; see {self.folder / 'console'}")
        self._init = _child_of(self._unshare.pid)
        return bool(self._init) and self._answers()

    def _answers(self) -> bool:
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        try:
            libvirt.open(self.uri).close()
        except libvirt.libvirtError:
            return False
        return True


def _child_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    except (OSError, IndexError):
        return 0
