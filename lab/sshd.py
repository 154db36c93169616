"""An SSH server of a laboratory's host, on a loopback address of its own, with keys of its own; root alone.

    with OtherHost(folder, "north") as host, SshServer(folder, host) as ssh:
        libvirt.open(ssh.uri)          # qemu+ssh://root@127.0.0.2:PORT/system?...

Nothing of the user's own SSH is read or changed. Source: sshd_config(5), ssh_config(5), libvirt's remote URIs.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from lab.otherhost import OtherHost
from lab.shellcommand import call
from lab.waiting import wait_for

SSHD = Path("/usr/sbin/sshd")
ADDRESS = "127.0.0.2"
_SERVER = """ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""
_CLIENT = """Host *
IdentityFile {folder}/user_key
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile none
StrictHostKeyChecking yes
BatchMode yes
"""


class SshServer:
    """Runs while the `with` block does; the sessions in it see the host's libvirt."""

    def __init__(self, folder: Path, host: OtherHost) -> None:
        """`folder` gets a folder `ssh` with all keys and settings."""
        self._folder = folder / "ssh"
        self._host = host
        self._process: subprocess.Popen[bytes] | None = None
        self._folder.mkdir(mode=0o755)
        with socket.socket() as probe:
            probe.bind((ADDRESS, 0))
            self.port: int = probe.getsockname()[1]
        for name in ("host_key", "user_key"):
            call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name)])
        public = (self._folder / "host_key.pub").read_text()
        (self._folder / "known_hosts").write_text(f"[{ADDRESS}]:{self.port} {public}")
        for name, text in (("sshd_config", _SERVER), ("ssh_config", _CLIENT)):
            given = {"address": ADDRESS, "port": self.port, "folder": self._folder}
            (self._folder / name).write_text(text.format(**given))
        self.command = self._folder / "ssh"
        self.command.write_text(f'#!/bin/sh\nexec ssh -F {self._folder}/ssh_config "$@"\n')
        self.command.chmod(0o755)

    @property
    def uri(self) -> str:
        """The host's libvirt by SSH."""
        return f"qemu+ssh://root@{ADDRESS}:{self.port}/system?no_tty=1&command={quote(str(self.command))}"

    def __enter__(self) -> Self:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self._folder / "log").open("ab") as log:
            self._process = self._host.popen([SSHD, "-D", "-e", "-f", self._folder / "sshd_config"], stdout=log)
        wait_for(self._is_up, f"sshd on {ADDRESS}:{self.port}; see {self._folder / 'log'}", seconds=30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._host.signal(self._process, signal.SIGTERM)
            self._process.wait()

    def _is_up(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((ADDRESS, self.port)) == 0
