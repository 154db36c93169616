"""Serve the disks of a point over NBD, read-only: starts nbdkit with our plugin (`serve_plugin`) and watches it.

This process holds a lease on the repository as long as nbdkit runs, so gc takes nothing that is read; nbdkit ends with
this process, whatever ends it. Nothing is written anywhere but the lease, so a crash leaves at most a socket file.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from vmcellar.errors import PermanentError
from vmcellar.restore.serve_notes import ReadNotes
from vmcellar.restore.thaw import refuse_asleep

if TYPE_CHECKING:
    from vmcellar.crypto.recipient import PrivateKey
    from vmcellar.errors import VmcellarError
    from vmcellar.repository.points import DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository

_PLUGIN = Path(__file__).with_name("serve_plugin.py")
_STOP_SECONDS = 10.0
_SOCKET_MOST = 107  # unix(7): sun_path holds 108 bytes with a zero at its end


@dataclass(frozen=True, slots=True)
class Opening:
    """How nbdkit opens the same repository: its configuration, and a recipient's private key in recipient mode."""

    config: Path
    private: PrivateKey | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """Where clients connect: a Unix socket that only this user may open, else a TCP port of the loopback address."""

    socket: Path | None = None
    port: int | None = None
    owner: tuple[int, int] | None = None
    """Another user and group, by number, who may open the socket."""

    def uri(self, target: str) -> str:
        """The NBD URI of one disk."""
        if self.socket is None:
            return f"nbd://127.0.0.1:{self.port}/{quote(target)}"
        return f"nbd+unix:///{quote(target)}?socket={quote(str(self.socket))}"

    def arguments(self) -> list[str]:
        """The same for nbdkit."""
        if self.socket is None:
            return ["--ipaddr", "127.0.0.1", "--port", str(self.port)]
        return ["--unix", str(self.socket)]


class Server:
    """nbdkit for the disks of one point; serves while the block runs. `stop` may be called from a signal handler."""

    def __init__(
        self,
        repository: Repository,
        opening: Opening,
        point: RestorePoint,
        disks: tuple[DiskRecord, ...],
        address: Address,
    ) -> None:
        self._repository = repository
        self._opening = opening
        self._point = point
        self._disks = disks
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None
        self._notes: ReadNotes | None = None
        self._stopping = False
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Returns when clients can connect.

        PermanentError when nbdkit is missing or does not start, when the address is taken, or when the point has gone;
        ArchivedError when it must be thawed first.
        """
        check_nbdkit()
        self._refuse_taken()
        with ExitStack() as stack:
            stack.enter_context(self._repository.reading(f"serve {self._point.vm}"))
            self._repository.check_kept(self._point)
            refuse_asleep(self._repository, self._point, [disk.target for disk in self._disks])
            self._notes = ReadNotes.new()
            stack.callback(self._notes.close)
            stack.callback(self._end)
            self._start()
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def uris(self) -> dict[str, str]:
        """The NBD URI of each disk by target."""
        return {disk.target: self._address.uri(disk.target) for disk in self._disks}

    def wait(self) -> None:
        """Wait until `stop` is called; PermanentError when nbdkit ends by itself."""
        assert self._process is not None  # noqa: S101  (inside the block)
        code = self._process.wait()
        if not self._stopping:
            raise PermanentError(f"nbdkit, which served {self._point.id}, ended by itself (exit status {code})")

    @property
    def ended(self) -> bool:
        """Whether nbdkit ended by itself."""
        return self._process is not None and not self._stopping and self._process.poll() is not None

    @property
    def read_errors(self) -> Mapping[type[VmcellarError], str]:
        """The message of the first read of each kind (`serve_notes.kind_of`) that failed; only inside the block."""
        return self._notes.errors() if self._notes is not None else {}

    @property
    def longest_read(self) -> float:
        """Seconds of the longest read so far, also of one that is under way; only inside the block."""
        return self._notes.longest() if self._notes is not None else 0.0

    def revive(self) -> None:
        """Start nbdkit again, at the same address; for clients that come back. Errors are those of `__enter__`."""
        if self._address.socket is not None:
            self._address.socket.unlink(missing_ok=True)  # one that was killed leaves it
        self._start()

    def stop(self) -> None:
        """Ask nbdkit to end; harmless before it runs and when it has ended."""
        self._stopping = True
        if self._process is not None:
            self._process.terminate()

    def _refuse_taken(self) -> None:
        path = self._address.socket
        if path is not None and len(os.fsencode(path)) > _SOCKET_MOST:
            raise PermanentError(
                f"{path} is too long a path for a socket: {_SOCKET_MOST} bytes at most", hint="name a shorter folder"
            )
        if path is not None and (path.exists() or path.is_symlink()):
            raise PermanentError(
                f"{path} exists already", hint="remove it if nothing serves there any more, or name another socket"
            )

    def _start(self) -> None:
        assert self._notes is not None  # noqa: S101  (inside the block)
        ours, theirs = socket.socketpair()
        with ours, ours.makefile("rw", encoding="utf-8") as lines:
            with theirs:
                self._process = self._spawn(theirs.fileno())
            private = self._opening.private
            wanted = {
                "config": str(self._opening.config.absolute()),
                "private": private.raw.hex() if private else "",
                "point": self._point.id,
                "disks": [disk.target for disk in self._disks],
                "notes": self._notes.handle,
            }
            try:
                lines.write(json.dumps(wanted) + "\n")
                lines.flush()
                answer = lines.readline()
            except OSError:  # it has ended, and said why on stderr
                answer = ""
        if not answer and not self._stopping:
            raise PermanentError(
                f"nbdkit did not start to serve {self._point.id}", hint="its own words stand above this error"
            )
        if self._address.socket is not None and self._address.owner is not None:
            os.chown(self._address.socket, *self._address.owner)

    def _spawn(self, channel: int) -> subprocess.Popen[bytes]:
        """In a session of its own, so that Ctrl-C comes to this process alone."""
        assert self._notes is not None  # noqa: S101  (inside the block)
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        options = ["--foreground", "--exit-with-parent", "--readonly", *self._address.arguments()]
        return subprocess.Popen(
            ["nbdkit", *options, "python", str(_PLUGIN), f"channel={channel}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=[channel, self._notes.handle],
            start_new_session=True,
            umask=0o077,
        )

    def _end(self) -> None:
        """End nbdkit, by force when clients hold it up, and remove its socket, which it leaves."""
        if self._process is None:
            return
        self.stop()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        if self._address.socket is not None:
            self._address.socket.unlink(missing_ok=True)


def check_nbdkit() -> None:
    """PermanentError with what to do unless nbdkit has its Python plugin, of the Python that runs us."""
    try:
        done = subprocess.run(["nbdkit", "--dump-plugin", "python"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermanentError("nbdkit is not installed", hint="apt-get install nbdkit nbdkit-plugin-python") from error
    if done.returncode != 0:
        raise PermanentError("nbdkit has no Python plugin", hint="apt-get install nbdkit-plugin-python")
    facts = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    theirs = facts.get("python_version", "")
    if theirs.split(".")[:2] != mine.split("."):
        raise PermanentError(
            f"nbdkit's Python plugin is of Python {theirs}, vmcellar runs on {mine}",
            hint="install vmcellar for the system's own Python, as ./run setup does",
        )
