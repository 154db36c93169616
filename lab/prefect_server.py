"""A real Prefect server on loopback with its database in a folder of ours, for the demo and the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.paths import lab_dir, lab_lock
from lab.shellcommand import LabError
from lab.waiting import wait_for

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}
"""No analytics, no promotion; the newer UI loads analytics in the browser whatever the server is told."""


DATABASE = "prefect.db"


class PrefectServer:
    """`with PrefectServer(folder) as server:`; `server.environment` makes a process use it."""

    def __init__(self, home: Path, port: int = 0, settings: Mapping[str, str] | None = None) -> None:
        """`settings` are more of Prefect's, such as the URL of another database."""
        self.home = home
        self.port = port or _free_port()
        self.environment = {
            **QUIET,
            **(settings or {}),
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """What starts it."""
        options = ["--host", "127.0.0.1", "--port", str(self.port)]
        dies_with_us = ["setpriv", "--pdeathsig", "KILL"]  # a server whose folder is gone would spin for ever
        return [*dies_with_us, sys.executable, "-m", "deployments.server", *options]

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        if "PREFECT_API_DATABASE_CONNECTION_URL" not in self.environment:
            new_database(self.home)
        with (self.home / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for(self._answers, f"the Prefect server on port {self.port}", seconds=120)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def pid(self) -> int:
        """The server's process."""
        if self._process is None:
            raise LabError("the Prefect server was not started")
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL to all of it, as when its host loses power."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise LabError(f"the Prefect server ended at once; see {self.home / 'server.log'}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def new_database(home: Path) -> None:
    """Put the installed Prefect's empty SQLite database into a PREFECT_HOME that has none: hundreds of migrations at
    each server's first start are seconds, and one start of a machine has shown that they work.
    """
    target = home / DATABASE
    if target.exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    template = lab_dir() / f"prefect-{version('prefect')}.db"
    with lab_lock("prefect"):
        if not template.exists():
            _make_template(template)
    shutil.copyfile(template, target)


def _make_template(template: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="prefect-", dir=template.parent) as folder:
        environment = {**os.environ, **QUIET, "PREFECT_HOME": folder, "PREFECT_API_URL": ""}
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        new = Path(folder) / "template"
        with closing(sqlite3.connect(Path(folder) / DATABASE)) as made, closing(sqlite3.connect(new)) as copy:
            made.backup(copy)
        new.replace(template)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
