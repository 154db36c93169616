"""KVM hosts of the laboratory, each with its own libvirt, guest, vmcellar and Prefect worker, on one repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from dotenv import dotenv_values

from deployments.up import SETTINGS
from lab.guest import LabGuest
from lab.otherhost import OtherHost
from lab.waiting import wait_for
from tests.flows.seen import Seen
from tests.proof.cellar import MIB, Cellar
from tests.proof.conftest import SMALL_DISKS

HOLD = Path(__file__).with_name("hold")
SECONDS = 90
JOB = "nightly"


@dataclass
class Site:
    """One host with what lies on it. The exports of its flow runs stand still until `go` is there."""

    host: OtherHost
    guest: LabGuest
    cellar: Cellar
    seen: Seen
    environment: dict[str, str]
    worker: subprocess.Popen[bytes] | None = None
    process: int = 0
    queue: str = ""

    @property
    def name(self) -> str:
        """The name of the queue: the host's own, or `queue`, where the VMs are those of another host."""
        return self.queue or self.host.name

    def start_deploy(self) -> subprocess.Popen[bytes]:
        """Begin to register the host's deployments, as an operator does on it."""
        command = [sys.executable, "-m", "vmcellar.cli.main", "--config", str(self.cellar.file), "deploy"]
        command += ["--host", self.queue] if self.queue else []
        return self.host.popen(command, env=self.environment, cwd=self.host.folder)

    def start_worker(self) -> None:
        """Start the worker of this host's queue; it is there when it takes its first run."""
        options = ["--pool", "vmcellar", "--work-queue", self.name, "--type", "process"]
        command = [sys.executable, "-m", "prefect", "worker", "start", *options]
        with (self.host.folder / "worker.log").open("ab") as log:
            self.worker = self.host.popen(command, env=self.environment, stdout=log, cwd=self.host.folder)

    def stop_worker(self, number: signal.Signals) -> None:
        """A signal to the worker; returns when it has ended."""
        assert self.worker is not None
        self.host.signal(self.worker, number)
        self.worker.wait(SECONDS)

    def kill_worker_with_its_runs(self) -> None:
        """SIGKILL to the worker and to all that it started; the worker first is held still, so it starts no more."""
        assert self.worker is not None
        self.host.signal(self.worker, signal.SIGSTOP)
        for pid in descendants(self.worker.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.worker.wait(SECONDS)

    def places(self) -> int:
        """How many places of this host's limit are taken, as the server knows it."""
        limit: Any = self.seen.client.read_global_concurrency_limit_by_name(f"vmcellar-{self.host.name}")
        return int(limit.active_slots)

    def trigger(self, deployment: str = f"backup-job/{JOB}@") -> UUID:
        """Start a run on this host as the UI does; the host's name is added to that of the deployment."""
        found = self.seen.client.read_deployment_by_name(deployment + self.name)
        parameters = found.parameters or {"request": {}}
        return self.seen.client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def wait_held(self) -> None:
        """Wait until an export on this host stands still; `process` is the flow run's then, as the host counts."""
        held = self.host.folder / "held"
        text = wait_for(lambda: held.exists() and held.read_text(), f"an export on {self.name}", seconds=SECONDS)
        self.process = int(text)

    def process_lives(self) -> bool:
        """Whether the process of the flow run that stood still is there."""
        return self.host.popen(["kill", "-0", str(self.process)]).wait() == 0

    def let_go(self) -> None:
        """No export of this host stands still any more."""
        (self.host.folder / "go").touch()

    def hold(self) -> None:
        """From now on they do."""
        for name in ("go", "held"):
            (self.host.folder / name).unlink(missing_ok=True)


def descendants(pid: int) -> list[int]:
    """All processes below one, as this machine counts them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def server_settings() -> dict[str, str]:
    """What operators are given for the server, but for its address."""
    text = dotenv_values(SETTINGS)
    return {name: value for name, value in text.items() if value is not None and name != "PREFECT_API_URL"}


@contextmanager
def site(
    folder: Path,
    name: str,
    seen: Seen,
    environment: dict[str, str],
    hot: Path | dict[str, Any],
    **limits: object,
) -> Iterator[Site]:
    """A host that is up, with a running guest in which no guest code runs; `hot` is a folder that hosts may share, or
    the settings of a tier.
    """
    base = folder / f"cellar-{name}"
    base.mkdir(mode=0o755)
    if isinstance(hot, Path):
        (base / "repository").symlink_to(hot)
    with OtherHost(folder, name) as host, LabGuest(folder, SMALL_DISKS, uri=host.uri) as guest:
        guest.start(paused=True)
        guest.poke("vda", MIB, 10 * MIB, seed=len(name))
        settings: dict[str, Any] = {
            "limits": {"segment": 4 * MIB, **limits},
            "libvirt": {"uri": host.uri},
            "backups": [{"name": JOB, "domains": [guest.name]}],
        }
        cellar = Cellar(base, settings if isinstance(hot, Path) else {**settings, "tiers": {"hot": hot}})
        yield Site(host, guest, cellar, seen, held_on(host, environment))


def held_on(host: OtherHost, environment: dict[str, str]) -> dict[str, str]:
    """The environment of a worker on `host` whose exports stand still."""
    more = {
        "PYTHONPATH": f"{HOLD}:{Path(__file__).parents[2]}",
        "FLOW_TEST_HOLD": str(host.folder),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    return {**os.environ, **environment, **more}
