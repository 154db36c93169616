"""A bare Debian 12 with systemd as its first process, which SSH reaches as root: what an Ansible role is run against.

    with vm_folder("bare") as folder, BareMachine(folder) as machine:
        machine.run(["systemctl", "is-system-running"])
        inventory = machine.inventory          # a line for Ansible

debootstrap makes it once (a minute, 315 MB in the laboratory's cache); each machine is a copy in systemd-nspawn, with
its own processes, mounts and host name, but this machine's network, so SSH listens on a port of loopback. Where
packages come from is copied from this machine: the sources of apt, pip's settings, certificates. Root alone; a machine
is gone with its `with` block. Source: debootstrap(8), systemd-nspawn(1), os-release(5).
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.paths import lab_dir, lab_lock
from lab.shellcommand import LabError, call
from lab.waiting import wait_for

PROGRAMS = ("debootstrap", "systemd-nspawn", "ssh", "ssh-keygen")
RELEASE = "bookworm"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "python3",
    "python3-apt",
    "iproute2",
    "ca-certificates",
)
ADDRESS = "127.0.0.1"
SETTINGS = (
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d",
    "/etc/apt/apt.conf.d",
    "/etc/hosts",
    "/etc/pip.conf",
    "/etc/ssl/certs/ca-certificates.crt",
    "/root/.config/pip",
    "/usr/share/keyrings",
)
"""Where this machine's packages come from, and by what their servers are known."""
_SSHD = f"""Port {{port}}
ListenAddress {ADDRESS}
PermitRootLogin prohibit-password
PasswordAuthentication no
"""


class BareMachine:
    """Runs while the `with` block does. One thread."""

    def __init__(self, folder: Path, devices: Sequence[Path] = ()) -> None:
        """`folder` gets the machine's root, its keys and its log; it sees these block `devices` of this machine.

        LabError when Debian cannot be fetched.
        """
        self._devices = devices
        self._root = folder / "root"
        self._key = folder / "key"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind((ADDRESS, 0))
            self.port: int = probe.getsockname()[1]
        call(["cp", "-a", "--reflink=auto", _debian(), self._root], seconds=300)
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key])
        self._set_up()

    def __enter__(self) -> Self:
        ends_with_us = ["setpriv", "--pdeathsig", "TERM"]
        command = [*ends_with_us, "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"]
        command += ["--console=pipe", *(f"--bind={device}" for device in self._devices)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, f"--machine={self.name}", f"--directory={self._root}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._is_up, f"a bare machine on {ADDRESS}:{self.port}; see {self._log}", seconds=120)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)  # an orderly shutdown
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def name(self) -> str:
        """Its host name."""
        return f"bare{self.port}"

    @property
    def inventory(self) -> str:
        """Its line in an inventory of Ansible."""
        return (
            f"{self.name} ansible_host={ADDRESS} ansible_port={self.port} ansible_user=root"
            f" ansible_ssh_private_key_file={self._key} ansible_ssh_common_args='{' '.join(self._options)}'"
        )

    def run(self, command: Sequence[str], *, seconds: float = 120) -> str:
        """What a command prints there; LabError when it fails."""
        ssh = ["ssh", *self._options, "-i", str(self._key), "-p", str(self.port), f"root@{ADDRESS}"]
        return call([*ssh, "--", *command], seconds=seconds)

    @property
    def _options(self) -> list[str]:
        known = self._key.with_name("known_hosts")
        return ["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={known}"]

    def _set_up(self) -> None:
        for setting in map(Path, SETTINGS):
            _copy(setting, self._root / setting.relative_to("/"))
        (self._root / "etc/hostname").write_text(f"{self.name}\n")
        (self._root / "etc/ssh/sshd_config.d/lab.conf").write_text(_SSHD.format(port=self.port))
        keys = self._root / "root/.ssh"
        keys.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self._key.with_suffix(".pub"), keys / "authorized_keys")
        host_key = (self._root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        self._key.with_name("known_hosts").write_text(f"[{ADDRESS}]:{self.port} {host_key}")

    def _is_up(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise LabError(f"the bare machine ended at once: {self._log.read_text()[-800:]}")
        with socket.socket() as probe:
            return probe.connect_ex((ADDRESS, self.port)) == 0


def _debian() -> Path:
    """A bare Debian that nobody has started yet."""
    made = lab_dir() / f"debian-{RELEASE}"
    with lab_lock("debian"):
        if not made.exists():
            partial = made.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", RELEASE, str(partial)]
            call([*command, _mirror()], seconds=900)
            partial.rename(made)
    return made


def _mirror() -> str:
    """The address that this machine's apt takes the release's packages from."""
    for line in call(["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Release: {RELEASE}"]).splitlines():
        return line
    raise LabError(f"apt has no source of {RELEASE}'s packages: `apt-get update`")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    elif source.exists():
        shutil.copy(source, target)
