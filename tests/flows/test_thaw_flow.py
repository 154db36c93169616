"""`thaw_point` against a real server and the stand-in for Glacier: each run looks once and schedules the next one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.flow_engine import run_flow
from prefect.states import Pending

from flows.parameters import ThawPoint
from flows.thaw import Thawed, thaw_point
from lab.glacier import Glacier
from tests.cli.conftest import quick_cost
from tests.flows.seen import Seen
from tests.tiers.conftest import glacier_server, glacier_settings
from tests.tiers.frozen import Frozen, make_frozen, make_tiered
from vmcellar.config.tiers import TierSettings
from vmcellar.engine import open_engine
from vmcellar.repository import leases
from vmcellar.upkeep.pins import pinned

__all__ = ["glacier_server", "glacier_settings"]

pytestmark = [pytest.mark.prefect]


@pytest.fixture
def frozen(
    glacier_server: Glacier, glacier_settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Frozen:
    """Two points in GLACIER; the engine that the flow opens goes by the archive's clock."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    made = make_frozen(glacier_server, glacier_settings, tmp_path)
    made.archive("GLACIER")
    open_engine(made.config).repository.clock = lambda: glacier_server.now
    return made


class Deployed:
    """A deployment of the flow that no worker serves: the test runs what is scheduled itself, at its own time."""

    def __init__(self, seen: Seen, name: str = "lab") -> None:
        """Two of the same name share what is scheduled."""
        self.client = seen.client
        flow_id = self.client.create_flow(thaw_point)
        self.id: UUID = self.client.create_deployment(flow_id, name, enforce_parameter_schema=False)

    def start(self, request: ThawPoint) -> FlowRun:
        parameters = {"request": request.model_dump(mode="json")}
        return self.client.create_flow_run_from_deployment(self.id, parameters=parameters)

    def scheduled(self) -> list[FlowRun]:
        return self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[self.id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            )
        )

    def run(self, flow_run: FlowRun) -> Thawed:
        """As a worker does once it is time: a new process would see the same."""
        self.client.set_flow_run_state(flow_run.id, Pending(), force=True)
        pending = self.client.read_flow_run(flow_run.id)
        work: Any = run_flow(thaw_point, flow_run=pending, parameters=pending.parameters)
        result: Thawed = asyncio.run(work)
        return result


def test_a_thaw_is_waited_for_by_nobody_and_then_restored(seen: Seen, frozen: Frozen, tmp_path: Path) -> None:
    deployed = Deployed(seen)
    request = ThawPoint(
        config=str(frozen.config), point=frozen.points[1][:20], days=2, directory=str(tmp_path / "out"), format="raw"
    )
    began = datetime.now(UTC)
    first = deployed.run(deployed.start(request))
    assert (first.restored, first.look.waiting) == (None, len(frozen.requests()))
    assert first.look.waiting > 0
    (later,) = deployed.scheduled()
    assert later.expected_start_time is not None
    assert timedelta(hours=5) <= later.expected_start_time - began < timedelta(hours=5.1)
    frozen.server.advance(hours=4)
    early = deployed.run(later)
    assert (early.restored, early.look.waiting) == (None, first.look.waiting)
    (last,) = deployed.scheduled()
    frozen.server.advance(hours=1)
    repository = open_engine(frozen.config).repository
    assert pinned(repository) == {frozen.points[1]}, "no prune takes what is paid for"
    done = deployed.run(last)
    assert done.restored is not None
    assert pinned(repository) == set()
    assert (tmp_path / "out" / "vda.raw").read_bytes() == frozen.disks[1]
    assert deployed.scheduled() == []
    assert {request["days"] for request in frozen.requests()} == {2}
    assert len(frozen.requests()) == first.look.waiting


def test_a_run_that_is_started_again_asks_for_nothing_twice(seen: Seen, frozen: Frozen) -> None:
    deployed = Deployed(seen)
    request = ThawPoint(config=str(frozen.config), point=frozen.points[0])
    deployed.run(deployed.start(request))
    asked = frozen.requests()
    deployed.run(deployed.start(request))
    assert frozen.requests() == asked
    assert len(deployed.scheduled()) == 1
    frozen.server.advance(days=9)
    again = deployed.run(deployed.scheduled()[0])
    assert again.look.waiting == len(asked)
    assert len(frozen.requests()) == 2 * len(asked)


def test_two_restores_of_one_point_wait_each_for_itself(seen: Seen, frozen: Frozen, tmp_path: Path) -> None:
    """Both are looked for again, and the first to finish leaves the point pinned for the other."""
    deployed = Deployed(seen, "two restores")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        request = ThawPoint(config=str(frozen.config), point=frozen.points[1], directory=str(folder), format="raw")
        deployed.run(deployed.start(request))
    frozen.server.advance(hours=5)
    repository = open_engine(frozen.config).repository
    later = deployed.scheduled()
    assert len(later) == 2
    for left, run in zip((1, 0), later, strict=True):
        assert deployed.run(run).restored is not None
        assert len(pinned(repository)) == left
    for folder in folders:
        assert (folder / "vda.raw").read_bytes() == frozen.disks[1]


def test_what_a_look_wrote_is_not_thawed_again(seen: Seen, frozen: Frozen, tmp_path: Path) -> None:
    """The restore begins with what can be read; then all of the thaw is slept through, the rest is asked for anew."""
    deployed = Deployed(seen, "writes")
    awake, *others = frozen.needed(frozen.points[1])
    frozen.tier.thaw([awake], 1, "expedited")
    frozen.server.advance(hours=0.1)
    request = ThawPoint(
        config=str(frozen.config), point=frozen.points[1], directory=str(tmp_path / "out"), format="raw"
    )
    assert deployed.run(deployed.start(request)).look.waiting == len(others)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {".vda.raw.partial", ".vmcellar-begun.json"}
    asked = frozen.requests()
    frozen.server.advance(days=9)
    (later,) = deployed.scheduled()
    assert deployed.run(later).look.waiting == len(others)
    again = [str(each["key"]).removeprefix("vm-backups/") for each in frozen.requests()[len(asked) :]]
    assert sorted(again) == others
    frozen.server.advance(hours=5)
    (last,) = deployed.scheduled()
    assert deployed.run(last).restored is not None
    assert (tmp_path / "out" / "vda.raw").read_bytes() == frozen.disks[1]
    assert not (tmp_path / "out" / ".vmcellar-begun.json").exists()


def test_with_fetch_the_restore_reads_from_hot(
    seen: Seen,
    glacier_server: Glacier,
    glacier_settings: TierSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert seen
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    tiered = make_tiered(glacier_server, glacier_settings, tmp_path)
    config = str(tmp_path / "vmcellar.yaml")
    request = ThawPoint(config=config, point=tiered.point, speed="expedited", fetch=True)
    assert asyncio.run(thaw_point(request)).look.waiting == 2
    glacier_server.advance(hours=0.1)
    assert asyncio.run(thaw_point(request)).look.again is None
    assert tiered.hot_packs == 2
    glacier_server.advance(days=9)
    later = request.model_copy(update={"directory": str(tmp_path / "out"), "format": "raw"})
    assert asyncio.run(thaw_point(later)).restored is not None
    assert (tmp_path / "out" / "vda.raw").read_bytes() == tiered.disk


def test_without_a_deployment_it_says_when_to_come_back(seen: Seen, frozen: Frozen) -> None:
    assert seen
    request = ThawPoint(config=str(frozen.config), point=frozen.points[0], speed="expedited")
    first = asyncio.run(thaw_point(request))
    assert first.next_look is not None
    frozen.server.advance(hours=0.2)
    second = asyncio.run(thaw_point(request))
    assert (second.next_look, second.look.waiting, second.restored) == (None, 0, None)


def test_a_gc_beside_it_ends_no_thaw_that_is_paid_for(
    seen: Seen,
    glacier_server: Glacier,
    glacier_settings: TierSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is copied to hot while gc runs: the next look is scheduled all the same, and copies then."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    tiered = make_tiered(glacier_server, glacier_settings, tmp_path)
    config = tmp_path / "vmcellar.yaml"
    repository = open_engine(config).repository
    deployed = Deployed(seen, "beside gc")
    request = ThawPoint(config=str(config), point=tiered.point, speed="expedited", fetch=True)
    with leases.holding(repository.tier, repository.keyring, leases.GC):
        assert deployed.run(deployed.start(request)).look.waiting == 2
        (later,) = deployed.scheduled()
        glacier_server.advance(hours=0.1)
        assert deployed.run(later).look.waiting == 0
    (last,) = deployed.scheduled()
    assert tiered.hot_packs == 0
    assert deployed.run(last).next_look is None
    assert tiered.hot_packs == 2
    assert deployed.scheduled() == []
