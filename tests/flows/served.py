"""A running `deployments.serve` whose flow runs stand still where a test wants it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from deployments.wanted import FORMS
from lab.waiting import wait_for
from tests.flows.hosts import descendants
from tests.flows.seen import Seen

HOLD = Path(__file__).with_name("hold")
SECONDS = 60
FLOWS = tuple(flow.name for flow in FORMS)


@dataclass
class Served:
    """A running `deployments.serve`; the exports of its flow runs stand still until `go` is there."""

    process: subprocess.Popen[bytes]
    folder: Path
    seen: Seen
    started: datetime

    def trigger(self, flow: str, **request: Any) -> UUID:
        """Start a run as the UI does."""
        deployment = self.seen.client.read_deployment_by_name(f"{flow}/here")
        made = self.seen.client.create_flow_run_from_deployment(deployment.id, parameters={"request": request})
        return made.id

    def wait_held(self) -> int:
        """Wait until an export stands still; the id of the flow run's process."""
        held = self.folder / "held"
        text = wait_for(lambda: held.exists() and held.read_text(), "an export", seconds=SECONDS)
        held.unlink()
        return int(text)

    def kill_with_its_runs(self) -> None:
        """SIGKILL to `serve` and to the processes of its flow runs. It is held still first, so that it tells nobody."""
        self.process.send_signal(signal.SIGSTOP)
        for pid in descendants(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait(SECONDS)

    def let_go(self) -> None:
        """No export of a later run stands still."""
        (self.folder / "go").touch()

    def runs(self, flow: str) -> list[FlowRun]:
        """The runs of this deployment, of any state."""
        wanted = FlowRunFilterDeploymentId(any_=[self.deployments()[flow].id])
        return self.seen.client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id=wanted))

    def deployments(self) -> dict[str, Any]:
        """All by flow, once this process has registered them; an earlier one on the same server may have, too."""
        found = {}
        for flow in FLOWS:
            try:
                found[flow] = self.seen.client.read_deployment_by_name(f"{flow}/here")
            except ObjectNotFound:
                return {}
            updated = found[flow].updated
            if updated is None or updated < self.started:
                return {}
        return found


@contextmanager
def serving(seen: Seen, environment: dict[str, str], folder: Path) -> Iterator[Served]:
    """Serve from a folder that is not the checkout."""
    more = {
        "PYTHONPATH": str(HOLD),
        "FLOW_TEST_HOLD": str(folder),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    started = datetime.now(UTC)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.serve"],
            cwd=folder,
            env={**environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        made = Served(process, folder, seen, started)
        try:
            wait_for(made.deployments, "the deployments", seconds=SECONDS)
            yield made
        finally:
            process.terminate()
            process.wait(SECONDS)
