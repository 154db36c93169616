"""The pictures of docs/prefect.md, made anew: `.venv/bin/python -m lab.screenshots`.

A real guest, a real server with this host's flows, a backup that the form starts, in a real browser. Needs what the
tests need (`./run test` installs it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lab import daemons
from lab.browser import Browser
from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.paths import vm_folder
from lab.prefect_server import PrefectServer
from lab.waiting import wait_for
from vmcellar.config.load import load_config
from vmcellar.repository.repository import Repository

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MIB = 1 << 20
JOBS = [
    {"name": "production", "schedule": "0 2 * * *", "window": "02:00-04:00", "retention": {"daily": 7, "weekly": 4}},
    {"name": "databases", "schedule": {"interval": "1h"}, "domains": ["db-*"], "rpo": "2h"},
]
SECONDS = 60


class Stage:
    """One server, what it serves, and the browser that looks at it."""

    def __init__(self, server: PrefectServer, browser: Browser) -> None:
        self.address = server.environment["PREFECT_API_URL"].removesuffix("/api")
        self.browser = browser

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/api{path}", data, headers)  # noqa: S310  (loopback)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return json.load(answer)
        except OSError:
            return None

    def picture(self, name: str, page: str, *words: str) -> None:
        """Take a picture of a page once these words are on it, and it has come to rest."""
        self.browser.open(f"{self.address}{page}")
        self.browser.wait_text(*words)
        before = b""
        target = IMAGES / f"{name}.png"

        def at_rest() -> bool:
            nonlocal before
            self.browser.picture(target)
            now = target.read_bytes()
            same, before = now == before, now
            return same

        wait_for(at_rest, f"the page {name} to come to rest", pause=1.0)


@contextmanager
def serving(server: PrefectServer, config: Path, folder: Path) -> Iterator[None]:
    """This host's flows and jobs."""
    environment = {**os.environ, **server.environment, "VMCELLAR_CONFIG": str(config)}
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(SECONDS)


def configure(folder: Path, guest: LabGuest) -> Path:
    """A repository, and two jobs."""
    (folder / "passphrase").write_text("a passphrase for pictures\n")
    jobs = [{"domains": [guest.name], **job} for job in JOBS]
    places = {"state": str(folder / "state"), "scratch": str(folder / "scratch"), "limits": {"segment": 32 * MIB}}
    tiers = {"tiers": {"hot": str(folder / "repository")}, "key": {"file": str(folder / "passphrase")}}
    file = folder / "vmcellar.yaml"
    file.write_text(yaml.safe_dump({**tiers, **places, "backups": jobs}))
    Repository.init(load_config(file))
    return file


def take(stage: Stage, guest: LabGuest) -> None:
    """All pictures."""

    def registered() -> Any:
        return stage.ask("/deployments/name/backup-job/databases")

    wait_for(registered, "the deployments", seconds=SECONDS)

    def taken() -> bool:
        states = [each["status"] for each in stage.ask("/deployments/filter", {}) or []]
        return bool(states) and set(states) == {"READY"}

    wait_for(taken, "this host to take runs", seconds=2 * SECONDS)
    stage.picture("deployments", "/deployments", "databases", "Hourly")
    deployment = stage.ask("/deployments/name/backup-vm/here")["id"]
    stage.picture("form", f"/deployments/deployment/{deployment}/run", "the VM's name in libvirt", "Submit")
    made = stage.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": {"request": {"vm": guest.name}}})
    wait_for(
        lambda: stage.ask(f"/flow_runs/{made['id']}")["state_type"] == "COMPLETED", "the backup", seconds=2 * SECONDS
    )
    deployment = stage.ask("/deployments/name/watch-fleet/here")["id"]
    looked = stage.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": {"request": {}}})
    wait_for(
        lambda: stage.ask(f"/flow_runs/{looked['id']}")["state_type"] == "COMPLETED", "the overview", seconds=SECONDS
    )
    (fleet,) = [each for each in stage.ask("/artifacts/filter", {}) if each["key"] == "fleet"]
    stage.picture("fleet", f"/artifacts/artifact/{fleet['id']}", "VMs have a verified point")
    stage.picture("run", f"/runs/flow-run/{made['id']}", "Completed", "Task Runs")
    (report,) = [each for each in stage.ask("/artifacts/filter", {}) if str(each["key"]).startswith("backup-")]
    stage.picture("report", f"/artifacts/artifact/{report['id']}", "full restore point")


def main() -> None:
    """Make them."""
    daemons.ensure()
    IMAGES.mkdir(exist_ok=True)
    with (
        vm_folder("pictures") as folder,
        LabGuest(folder, [DiskSpec("vda", 256 * MIB), DiskSpec("vdb", 64 * MIB)]) as guest,
        PrefectServer(folder / "prefect") as server,
        Browser(Path(tempfile.mkdtemp(dir=folder))) as browser,
    ):
        guest.start(paused=True)
        guest.poke("vda", MIB, 128 * MIB, seed=1)
        guest.poke("vdb", 0, 16 * MIB, seed=2)
        with serving(server, configure(folder, guest), folder):
            take(Stage(server, browser), guest)


if __name__ == "__main__":
    main()
