"""The pictures of docs/images, made anew: `.venv/bin/python -m lab.screenshots`.

Two real guests, a real server with this host's flows, real backups, a proof, a drill and a restore, in a real browser.
Only the history behind the plots is made up. Needs what the tests need (`./run test` installs it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lab import daemons
from lab.browser import Browser
from lab.disks import DiskSpec
from lab.guest import LabGuest
from lab.history import note_runs
from lab.paths import vm_folder
from lab.prefect_server import PrefectServer
from lab.waiting import wait_for
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.config.load import load_config
from vmcellar.engine import open_engine
from vmcellar.repository.repository import Repository

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MIB = 1 << 20
JOBS = [
    {"name": "production", "domains": ["web*"], "schedule": "0 2 * * *", "window": "02:00-04:00", "rpo": "26h",
     "rto": "30m", "retention": {"daily": 7, "weekly": 4}},
    {"name": "databases", "domains": ["db*"], "schedule": {"interval": "1h"}, "rpo": "2h"},
]  # fmt: skip
LOGS = {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_EXTRA_LOGGERS": "vmcellar"}
SECONDS = 60
LONG = 300
LOOKS = 15


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

    def run(self, deployment: str, **request: Any) -> str:
        """Start a run of a deployment and wait until it has completed; its id."""
        identity = self.ask(f"/deployments/name/{deployment}")["id"]
        made = self.ask(f"/deployments/{identity}/create_flow_run", {"parameters": {"request": request}})["id"]

        def ended() -> bool:
            state = self.ask(f"/flow_runs/{made}")["state"]
            assert state["type"] not in ("FAILED", "CRASHED"), state["message"]
            return bool(state["type"] == "COMPLETED")

        wait_for(ended, f"{deployment} to complete", seconds=LONG)
        return str(made)

    def report(self, name: str, key: str, *words: str) -> None:
        """Take a picture of the newest artifact of that key."""
        (found,) = self.ask("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
        newest = found["latest_id"]  # the id that /artifacts/KEY/latest gives is the collection's
        self.picture(name, f"/artifacts/artifact/{newest}", *words)

    def picture(self, name: str, page: str, *words: str) -> None:
        """Take a picture of a page once these words are on it, and it has come to rest, or does not come to it."""
        self.browser.open(f"{self.address}{page}")
        self.browser.wait_text(*words)
        before, target = b"", IMAGES / f"{name}.png"
        for _ in range(LOOKS):
            time.sleep(1.0)
            self.browser.picture(target)
            now = target.read_bytes()
            if now == before:
                break
            before = now


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


def configure(folder: Path) -> Path:
    """A repository, and two jobs."""
    (folder / "passphrase").write_text("a passphrase for pictures\n")
    places = {"state": str(folder / "state"), "scratch": str(folder / "scratch"), "limits": {"segment": 32 * MIB}}
    tiers = {"tiers": {"hot": str(folder / "repository")}, "key": {"file": str(folder / "passphrase")}}
    file = folder / "vmcellar.yaml"
    file.write_text(yaml.safe_dump({**tiers, **places, "backups": JOBS}))
    Repository.init(load_config(file))
    return file


def named(guest: LabGuest, name: str) -> LabGuest:
    """The guest, while it is off, under a name as people give; should this be killed, nobody sweeps it."""
    guest.domain.rename(name, 0)
    guest.name, guest.domain = name, guest.connection.lookupByName(name)
    return guest


def make_up_history(config: Path) -> None:
    """Sixty days of six VMs, up to now."""
    frame = generate(replace(TUNING, vms=6, days=60, newcomers=0.0, leavers=0.0)).frame
    frame = frame[frame["disk"] == "vda"].copy()
    frame["started"] += pd.Timestamp.now("UTC") - frame["started"].max() - pd.Timedelta(hours=1)
    engine = open_engine(config)
    note_runs(engine.catalog, frame)
    engine.repository.close()


def take(stage: Stage, web: LabGuest, config: Path) -> None:
    """All pictures."""
    wait_for(lambda: stage.ask("/deployments/name/backup-job/databases"), "the deployments", seconds=SECONDS)

    def taken() -> bool:
        states = [each["status"] for each in stage.ask("/deployments/filter", {}) or []]
        return bool(states) and set(states) == {"READY"}

    wait_for(taken, "this host to take runs", seconds=2 * SECONDS)
    stage.picture("deployments", "/deployments", "databases", "Hourly")
    for name, deployment in (("form", "backup-vm/here"), ("form-restore", "restore-vm/here")):
        identity = stage.ask(f"/deployments/name/{deployment}")["id"]
        stage.picture(name, f"/deployments/deployment/{identity}/run", "Configuration file", "Submit")
    run = stage.run("backup-vm/here", vm=web.name, job="production")
    stage.picture("run", f"/runs/flow-run/{run}", "Completed", "Task Runs", "Finished in state")
    web.check("seq 7000000 9000000 > /data/more; sync")
    web.zero("vdb", 0, 4 * MIB)
    stage.run("backup-vm/here", vm=web.name, job="production")
    stage.report("report", f"backup-{web.name}", "incremental")
    stage.run("backup-job/databases", job="databases")
    point = f"{web.name}@latest"
    stage.run("verify-restores/here", vms=[web.name], drills=False)
    stage.report("proof", f"verification-{web.name}", "passed")
    stage.run("drill-point/here", point=point)
    stage.report("drill", f"drill-{web.name}", "passed")
    stage.run("restore-vm/here", point=point, directory=str(config.parent / "web1-restored"))
    stage.report("restore", f"restore-{web.name}", "restored")
    stage.run("upkeep-repository/here")
    stage.run("watch-fleet/here")
    stage.report("fleet", "fleet", web.name)
    make_up_history(config)
    stage.run("analyse-history/here")
    stage.report("history", "history", "Capacity")
    stage.report("plot", "plot-tier-hot")


def main() -> None:
    """Make them."""
    daemons.ensure()
    IMAGES.mkdir(exist_ok=True)
    with (
        vm_folder("pictures") as folder,
        LabGuest(folder, [DiskSpec("vda", 256 * MIB, ext4=True), DiskSpec("vdb", 64 * MIB)]) as web,
        LabGuest(folder, [DiskSpec("vda", 128 * MIB)], agent=False) as db,
        PrefectServer(folder / "prefect", settings=LOGS) as server,
        Browser(Path(tempfile.mkdtemp(dir=folder))) as browser,
    ):
        named(web, "web1").start()
        named(db, "db1").start(paused=True)
        web.fill("photos", 48 * MIB, seed=1)
        web.check("seq 6000000 > /data/numbers; sync")
        web.write("vdb", 0, 16 * MIB, seed=2)
        db.poke("vda", MIB, 48 * MIB, seed=4)
        config = configure(folder)
        with serving(server, config, folder):
            take(Stage(server, browser), web, config)


if __name__ == "__main__":
    main()
