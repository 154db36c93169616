"""A PostgreSQL of a test's own on a loopback port: Debian's programs, a database in a folder, no password."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.shellcommand import LabError, call
from lab.waiting import wait_for

USER = "postgres"


def programs() -> Path | None:
    """The folder of Debian's newest PostgreSQL, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return found[-1] if found else None


class Postgres:
    """`with Postgres(folder) as database:`; root alone, as PostgreSQL refuses to run as root and needs its own user."""

    def __init__(self, folder: Path) -> None:
        """`folder` must be one that every user may enter."""
        found = programs()
        if found is None:
            raise LabError("PostgreSQL is not installed: apt-get install postgresql")
        self._programs = found
        self._folder = folder / "postgresql"
        self.port = free_port()

    def url(self, name: str) -> str:
        """A database of this name, as SQLAlchemy names it."""
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/{name}"

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700)
        shutil.chown(self._folder, USER)
        self._call("initdb", "--auth=trust", "--username", USER, "--no-sync", "-D", str(self._folder))
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        log = str(self._folder / "log")
        self._call("pg_ctl", "start", "--wait", "-D", str(self._folder), "-l", log, "-o", options)

    def stop(self, how: str = "fast") -> None:
        """`fast` cuts all clients; `immediate` is a crash."""
        self._call("pg_ctl", "stop", "--wait", "-D", str(self._folder), "-m", how)

    def create(self, name: str) -> str:
        """A new database; its URL."""
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, name)
        return self.url(name)

    def _call(self, program: str, *arguments: str) -> None:
        as_user = ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"] if os.geteuid() == 0 else []
        call([*as_user, str(self._programs / program), *arguments])


class Redis:
    """`with Redis(folder) as redis:`, on a loopback port, which keeps its data over a restart, as servers want it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start and wait until it answers, with all its data loaded."""
        program = shutil.which("redis-server")
        if program is None:
            raise LabError("Redis is not installed: apt-get install redis-server")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--appendonly", "yes"]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", program, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._answers, f"Redis on port {self.port}; see {self._folder / 'redis.log'}", seconds=30)

    def kill(self) -> None:
        """SIGKILL, as when its host loses power; harmless when it is off."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
