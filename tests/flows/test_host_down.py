"""A host that does everything by itself loses power in mid-backup: server, `serve`, the run, QEMU and libvirtd end at
one moment, and what lay in tmpfs is gone. With VMCELLAR_FAULTS=1, a minute.

Then it boots, the boot unit's command runs, guest and `vmcellar up` start: no VM is frozen or held, nothing is left, no
run is `Running`, and the next backups are complete. `tests/proof/test_host_down.py` cuts the power at each stage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from lab import reference
from lab.guest import LabGuest
from lab.otherhost import OtherHost
from lab.paths import vm_folder
from lab.prefect_server import new_database
from lab.require import requires
from lab.waiting import wait_for
from tasks.server import answers
from tests.flows.hosts import JOB, SECONDS, held_on
from tests.flows.seen import Seen
from tests.flows.test_deploy import free_port
from tests.proof.cellar import MIB, Cellar, Disks, job_runs
from tests.proof.test_host_down import LIVE_DISKS, assert_all_read, boot_command, clear_unfinished, wake
from vmcellar.repository.points import RestorePoint

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.prefect,
    pytest.mark.guest,
    pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="a minute: set VMCELLAR_FAULTS=1"),
]

DEPLOYMENT = f"backup-job/{JOB}"
AT_WORK = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
OFF = dict.fromkeys(("recover", "watch", "upkeep", "rebalance", "verify"), "off")
"""No schedule settles anything: what is settled, the boot and the start did."""


@dataclass
class Alone:
    """The host, a guest of its, and the server of its own. Exports stand still until `go` is there."""

    host: OtherHost
    guest: LabGuest
    cellar: Cellar
    seen: Seen
    environment: dict[str, str]
    written: Any = None

    def boot(self) -> None:
        """As a machine does: libvirtd, the boot unit beside which no server answers yet, the guest, `vmcellar up`."""
        self.host.boot()
        self.guest._reconnect_if_cut()
        self.host.run(boot_command(), env={**self.environment, "PREFECT_API_URL": self.environment["URL"]})
        clear_unfinished(self.cellar)
        assert self.cellar.leftovers() == []
        wake(self.guest)
        self.up()

    def up(self) -> None:
        """Start `vmcellar up`; returns when it has registered the job."""
        command = [sys.executable, "-m", "vmcellar.cli.main", "up", "--port", self.environment["PORT"]]
        with (self.host.folder / "up.log").open("ab") as log:
            self.host.popen(command, env=self.environment, stdout=log, cwd=self.host.folder)
        before = self.written
        wait_for(lambda: self.registered() != before, f"the job; see {log.name}", seconds=2 * SECONDS)

    def registered(self) -> Any:
        """When the job's deployment was last written, as far as is known."""
        if answers(self.environment["URL"]):
            try:
                self.written = self.seen.client.read_deployment_by_name(DEPLOYMENT).updated
            except ObjectNotFound:
                return None
        return self.written

    def held(self) -> UUID:
        """A run whose export stands still, with the VM's job running and the guest awake."""
        for name in ("go", "held"):
            (self.host.folder / name).unlink(missing_ok=True)
        found = self.seen.client.read_deployment_by_name(DEPLOYMENT)
        run = self.seen.client.create_flow_run_from_deployment(found.id, parameters=found.parameters).id
        wait_for((self.host.folder / "held").exists, "an export", seconds=2 * SECONDS)
        assert job_runs(self.guest)
        assert self.guest.agent("guest-fsfreeze-status") == "thawed"
        return run

    def backup(self) -> tuple[RestorePoint, Disks]:
        """What a run of the job makes, and its instant, copied out of its own job."""
        run = self.held()
        copy = reference.of_job(self.guest.domain, self.cellar.folder())
        (self.host.folder / "go").touch()
        assert self.seen.ended(run, SECONDS).name == "Completed"
        return self.cellar.points(self.guest)[-1], copy

    def at_work(self) -> list[str]:
        """Runs, of any flow, that the server takes for begun and not ended."""
        wanted = FlowRunFilterState(type=FlowRunFilterStateType(any_=[*AT_WORK]))
        return [run.name for run in self.seen.client.read_flow_runs(flow_run_filter=FlowRunFilter(state=wanted))]


@pytest.fixture
def alone(libvirt_daemons: str) -> Iterator[Alone]:
    """A host that is up, with `vmcellar up` and a guest that runs."""
    assert libvirt_daemons
    requires("root")
    port = free_port()
    with ExitStack() as stack:
        folder = stack.enter_context(vm_folder("alone"))
        base = folder / "cellar"
        host = stack.enter_context(OtherHost(folder, "alone", volatile=(base / "scratch", base / "landing")))
        guest = LabGuest(folder, LIVE_DISKS, uri=host.uri)
        jobs = [{"name": JOB, "domains": [guest.name]}]
        cellar = Cellar(base, {"libvirt": {"uri": host.uri}, "backups": jobs, "maintenance": OFF})
        new_database(cellar.config.state / "prefect")
        url = f"http://127.0.0.1:{port}/api"
        settings: dict[Any, Any] = {
            PREFECT_API_URL: url,
            PREFECT_HOME: folder / "client",
            PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        }
        stack.enter_context(temporary_settings(settings))
        ours = {"VMCELLAR_CONFIG": str(cellar.file), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        known = {name: value for name, value in held_on(host, {}).items() if not name.startswith("PREFECT")}
        made = Alone(host, guest, cellar, stack.enter_context(Seen()), {**known, **ours, "URL": url, "PORT": str(port)})
        try:
            wake(guest)
            made.up()
            yield made
        finally:
            if host.is_off:
                host.boot()
            guest.remove()


def test_a_host_that_lost_power_in_mid_backup_settles_all_of_it_as_it_comes_up(alone: Alone) -> None:
    guest, cellar = alone.guest, alone.cellar
    guest.poke("vdb", MIB, 8 * MIB, seed=1)
    first, before = alone.backup()
    guest.poke("vdb", 2 * MIB, MIB, seed=2)
    run = alone.held()
    guest.poke("vdb", 4 * MIB, MIB, seed=3)  # there is something in the scratch file now
    alone.host.power_cut()
    alone.boot()
    assert alone.seen.ended(run, SECONDS).name == "Crashed"
    wait_for(lambda: alone.at_work() == [], "the runs of that run to be told of", seconds=SECONDS)
    assert not job_runs(guest)

    guest.poke("vdb", 6 * MIB, MIB, seed=4)
    second, now = alone.backup()
    assert_all_read(second)
    assert second.consistency == "quiesced"
    cellar.assert_restores(second.id, now)
    guest.poke("vdb", 7 * MIB, MIB, seed=5)
    third, now = alone.backup()
    assert third.kind == "incremental", third.reason
    cellar.assert_restores(third.id, now)
    cellar.assert_restores(first.id, before)
    assert guest.agent("guest-fsfreeze-status") == "thawed"
    cellar.assert_nothing_left(guest)
    assert alone.at_work() == []
