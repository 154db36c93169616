"""`vmcellar up`: a server with its UI and this host's flows, as two child processes with a clean stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dotenv import dotenv_values

from tasks.server import answers
from vmcellar.errors import PermanentError

SETTINGS = Path(__file__).with_name("prefect.env")
START_SECONDS = 120
STOP_SECONDS = 60
POLL_SECONDS = 0.5

Say = Callable[[str], None]


class Host:
    """The processes of one host. Use it from the main thread: it takes the signals."""

    def __init__(self, config: Path, state: Path, port: int) -> None:
        self._config = config
        self._home = state / "prefect"
        self._port = port
        self._stopped = False
        self._children: list[tuple[str, subprocess.Popen[bytes]]] = []

    def run(self, say: Say) -> int:
        """Run until SIGINT or SIGTERM, which end it cleanly (0); 1 when a child ended by itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        environment = self._environment()
        try:
            url = environment["PREFECT_API_URL"]
            if not answers(url):
                self._start("server", ["-m", "deployments.server", *self._address()], environment)
                self._wait_for(url)
            if self._stopped:
                return 0
            self._start("serve", ["-m", "deployments.serve"], environment)
            say(f"the UI is at {url.removesuffix('/api')}; logs are in {self._home}; Ctrl-C stops")
            return self._watch(say)
        finally:
            self._end(say)

    def _environment(self) -> dict[str, str]:
        given = os.environ.get("PREFECT_API_URL", "")
        ours = {name: value for name, value in dotenv_values(SETTINGS).items() if value is not None}
        ours["PREFECT_API_URL"] = given if answers(given) else f"http://127.0.0.1:{self._port}/api"
        ours["PREFECT_HOME"] = str(self._home)
        ours["VMCELLAR_CONFIG"] = str(self._config)
        if given and given != ours["PREFECT_API_URL"]:
            raise PermanentError(
                f"the Prefect server at {given} (PREFECT_API_URL) does not answer",
                hint="start it, or unset PREFECT_API_URL: then `vmcellar up` starts one of its own",
            )
        return {**os.environ, **{name: os.environ.get(name, value) for name, value in ours.items()}, **_forced(ours)}

    def _address(self) -> list[str]:
        return ["--host", "127.0.0.1", "--port", str(self._port)]

    def _start(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", sys.executable, *arguments],  # none outlives a `kill -9` of us
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop them in order
            )
        self._children.append((name, process))

    def _wait_for(self, url: str) -> None:
        end = time.monotonic() + START_SECONDS
        while not answers(url) and not self._stopped:
            self._ended_by_itself()
            if time.monotonic() > end:
                raise PermanentError(
                    f"the Prefect server did not answer within {START_SECONDS} s",
                    hint=f"see {self._home / 'server.log'}",
                )
            time.sleep(POLL_SECONDS)

    def _watch(self, say: Say) -> int:
        while not self._stopped:
            try:
                self._ended_by_itself()
            except PermanentError as error:
                say(f"error: {error.message}\n  {error.hint}")
                return 1
            time.sleep(POLL_SECONDS)
        return 0

    def _ended_by_itself(self) -> None:
        for name, process in self._children:
            if process.poll() is not None and not self._stopped:
                raise PermanentError(
                    f"{name} ended by itself (exit code {process.returncode})", hint=f"see {self._home / name}.log"
                )

    def _stop(self, number: int, frame: object) -> None:
        del number, frame
        self._stopped = True

    def _end(self, say: Say) -> None:
        """Flows first, while the server can still be told."""
        self._stopped = True
        for name, process in reversed(self._children):
            if process.poll() is None:
                say(f"stopping {name}")
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    say(f"{name} did not stop within {STOP_SECONDS} s: killed; `vmcellar recover` clears leftovers")
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _forced(ours: dict[str, str]) -> dict[str, str]:
    return {name: ours[name] for name in ("PREFECT_API_URL", "PREFECT_HOME", "VMCELLAR_CONFIG")}
