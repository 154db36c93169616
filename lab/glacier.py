"""A stand-in for Amazon S3 with its archive classes, as a process of its own on loopback, for the tests.

It is not Amazon's: no Glacier can run here. It is moto's S3 server with what moto lacks of GLACIER and DEEP_ARCHIVE
(lab/glacier_server.py). Its clock stands until a test moves it, so that hours of thawing take no time.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab.ceph import free_port
from lab.shellcommand import LabError
from lab.waiting import wait_for

ACCESS, SECRET = "lab-access", "lab-secret"
_CONTROL = "/_lab"  # as in lab/glacier_server.py, which imports moto
_NEEDS = ("moto", "flask", "flask_cors", "werkzeug")
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_ROOT = Path(__file__).resolve().parent.parent


def missing_modules() -> list[str]:
    """What of the server is not installed here."""
    return [name for name in _NEEDS if find_spec(name) is None]


@dataclass
class Glacier:
    """The running server."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    def start(cls, now: float | None = None) -> Glacier:
        """An empty server that answers, its clock at `now` (seconds since 1970; default: this host's)."""
        if missing := missing_modules():
            raise LabError(f"not installed: {', '.join(missing)}; `./run setup` installs them")
        port = free_port()
        process = subprocess.Popen(
            [*_DIES_WITH_US, sys.executable, "-m", "lab.glacier_server", str(port), str(now or time.time())],
            cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        server = cls(port, process)
        try:
            wait_for(server._answers, f"the stand-in for Glacier on port {port}", seconds=60)
        except BaseException:
            server.stop()
            raise
        return server

    def stop(self) -> None:
        """End it; nothing is left."""
        self.process.kill()
        self.process.wait()

    def make_bucket(self, name: str) -> None:
        """An empty bucket."""
        import boto3  # noqa: PLC0415  (a third of a second that other tests need not pay)

        client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
        )  # fmt: skip
        try:
            client.create_bucket(Bucket=name)
        finally:
            client.close()

    def advance(self, *, hours: float = 0.0, days: float = 0.0) -> None:
        """Move the server's clock."""
        self._ask(f"?seconds={hours * 3600 + days * 86400}", "POST")

    @property
    def now(self) -> float:
        """The server's clock in seconds since 1970."""
        return float(self._ask()["now"])

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Every request to thaw that was accepted: bucket, key, storage_class, tier, days, size."""
        return list(self._ask()["requests"])

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise LabError("the stand-in for Glacier ended at once; try `python -m lab.glacier_server PORT 0`")
        try:
            return bool(self._ask()["name"])
        except OSError:
            return False

    def _ask(self, query: str = "", method: str = "GET") -> dict[str, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, f"{_CONTROL}{query}")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
