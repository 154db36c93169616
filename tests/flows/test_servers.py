"""Two Prefect servers on one PostgreSQL and one Redis, as deployments/servers.env sets them, with a KVM host at each:
with VMCELLAR_SERVERS=1.

It needs the packages postgresql and redis-server of Debian, and prefect-redis: not part of what CI installs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dotenv import dotenv_values
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events import Event
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from lab.paths import vm_folder
from lab.postgres import Postgres, Redis
from lab.prefect_server import PrefectServer
from lab.require import requires
from lab.waiting import wait_for
from tasks.evidence import UNVERIFIED
from tests.flows.hosts import SECONDS, Site, server_settings, site
from tests.flows.seen import Seen
from tests.proof.cellar import Disks, job_runs

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.prefect,
    pytest.mark.skipif(not os.environ.get("VMCELLAR_SERVERS"), reason="PostgreSQL and Redis: set VMCELLAR_SERVERS=1"),
]
FORGOTTEN = 480
"""Seconds until a place that nobody could give back is free again: its lease of a minute ends, and a server looks; one
that was about to when Redis went away is waited for five minutes by the other."""
SETTINGS = Path(__file__).parents[2] / "deployments" / "servers.env"


@pytest.fixture
def database() -> Iterator[Postgres]:
    """A PostgreSQL that a test may restart."""
    with vm_folder("database") as folder, Postgres(folder) as running:
        yield running


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis."""
    with Redis(tmp_path) as running:
        yield running


@pytest.fixture
def servers(tmp_path: Path, database: Postgres, redis: Redis) -> Iterator[list[PrefectServer]]:
    """Two, with the settings that operators are given, but for the addresses."""
    text = {name: value or "" for name, value in dotenv_values(SETTINGS).items()}
    settings = {name: value.replace("redis.example:6379", f"127.0.0.1:{redis.port}") for name, value in text.items()}
    settings["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"] = "2"
    settings["PREFECT_API_DATABASE_CONNECTION_URL"] = database.create("prefect")
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                PrefectServer(tmp_path / f"server-{number}", settings={**server_settings(), **settings})
            )
            for number in range(2)
        ]


@pytest.fixture
def sites(servers: list[PrefectServer], vm_tmp: Path, libvirt_daemons: str) -> Iterator[list[Site]]:
    """A host at each server, with its deployments and its worker; what the test sees, it sees at the first."""
    requires("root")
    assert libvirt_daemons
    (vm_tmp / "repository").mkdir()
    settings: dict[Any, Any] = {
        PREFECT_API_URL: servers[0].environment["PREFECT_API_URL"],
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
    }
    with ExitStack() as stack:
        stack.enter_context(temporary_settings(settings))
        seen = stack.enter_context(Seen())
        made = [
            stack.enter_context(site(vm_tmp, name, seen, server.environment, vm_tmp / "repository"))
            for name, server in zip(("north", "south"), servers, strict=True)
        ]
        assert [deploy.wait(SECONDS) for deploy in [each.start_deploy() for each in made]] == [0, 0]
        for each in made:
            each.start_worker()
        yield made


def test_runs_of_two_workers_outlive_a_restart_of_the_database_and_of_one_server(
    sites: list[Site], servers: list[PrefectServer], database: Postgres
) -> None:
    expected = [each.cellar.reference(each.guest) for each in sites]
    runs = [each.trigger() for each in sites]
    for each in sites:
        each.wait_held()
        assert job_runs(each.guest)
        assert each.places() == 1
    database.stop("immediate")
    database.start()
    servers[1].kill()
    servers[1].__enter__()
    assert [each.places() for each in sites] == [1, 1], "who holds a place outlives the server that gave it"
    for each, run, disks in zip(sites, runs, expected, strict=True):
        assert_completed(each, run, disks)


def test_runs_of_two_workers_and_the_automations_outlive_a_restart_of_redis(sites: list[Site], redis: Redis) -> None:
    """It kept who holds a place; what is told through it is told again once it is there."""
    expected = [each.cellar.reference(each.guest) for each in sites]
    runs = [each.trigger() for each in sites]
    for each in sites:
        each.wait_held()
        assert job_runs(each.guest)
    redis.kill()
    redis.start()
    assert [each.places() for each in sites] == [1, 1]
    for each, run, disks in zip(sites, runs, expected, strict=True):
        assert_completed(each, run, disks)
        assert_looked_at_at_once(each)


@pytest.mark.timeout(900)
def test_runs_that_end_while_redis_is_away_have_their_points_and_are_settled(sites: list[Site], redis: Redis) -> None:
    """The servers answer with errors then; the backups go on without them."""
    expected = [each.cellar.reference(each.guest) for each in sites]
    runs = [each.trigger() for each in sites]
    for each in sites:
        each.wait_held()
    redis.kill()
    for each in sites:
        assert_left(each)
    redis.start()
    for each, run, disks in zip(sites, runs, expected, strict=True):
        assert each.seen.ended(each.trigger("recover-host/"), SECONDS).name == "Completed"
        assert each.seen.state(run).name == "Completed"
        (point,) = each.cellar.points(each.guest)
        each.cellar.assert_restores(point.id, disks)
        each.cellar.assert_nothing_left(each.guest)
        assert_looked_at_at_once(each)
    for each in sites:
        wait_until_free(each, FORGOTTEN)


def test_both_servers_make_each_run_of_a_schedule_once(servers: list[PrefectServer]) -> None:
    """Both look at all schedules every two seconds, and do so again and again as time goes on."""
    settings: dict[Any, Any] = {PREFECT_API_URL: servers[0].environment["PREFECT_API_URL"]}
    with temporary_settings(settings), Seen() as seen:
        flow = seen.client.create_flow_from_name("ticks")
        every = [DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(seconds=20)))]
        ours = [seen.client.create_deployment(flow, f"tick-{number}", schedules=every) for number in range(5)]

        def times(deployment: UUID) -> list[Any]:
            only = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
            return [run.expected_start_time for run in seen.client.read_flow_runs(flow_run_filter=only, limit=200)]

        wait_for(lambda: all(len(times(each)) > 3 for each in ours), "the first runs", seconds=SECONDS)
        later = max(time for each in ours for time in times(each)) + timedelta(seconds=40)
        wait_for(lambda: all(max(times(each)) > later for each in ours), "more runs", seconds=2 * SECONDS, pause=1)
        made = [times(each) for each in ours]
    print(f"{sum(map(len, made))} runs of {len(made)} schedules")
    assert [len(set(each)) for each in made] == [len(each) for each in made], "none twice"


def assert_looked_at_at_once(where: Site) -> None:
    """An event that its deployment's automation waits for begins a look at the fleet."""
    watch = where.seen.client.read_deployment_by_name(f"watch-fleet/{where.name}")
    only = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[watch.id]))

    def looks() -> list[FlowRun]:
        made = where.seen.client.read_flow_runs(flow_run_filter=only)
        return [run for run in made if run.created_by is not None and run.created_by.type == "AUTOMATION"]

    tag = {"prefect.resource.id": f"prefect.tag.vmcellar-{where.name}", "prefect.resource.role": "tag"}
    resource = {"prefect.resource.id": "vmcellar.point.1"}
    event = Event.model_validate({"event": UNVERIFIED, "resource": resource, "related": [tag]})
    assert looks() == []
    where.seen.client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
    wait_for(looks, "a look at once", seconds=SECONDS)


def wait_until_free(where: Site, seconds: float) -> None:
    """No place of the host's limit is taken."""
    wait_for(lambda: where.places() == 0, f"the place of {where.name} to be free again", seconds=seconds)


def assert_left(where: Site) -> None:
    """The run's process ends its work and itself, and the VM is let go."""
    where.let_go()
    wait_for(lambda: not where.process_lives(), "the run's process to leave", seconds=SECONDS)
    assert not job_runs(where.guest)


def assert_completed(where: Site, run: UUID, expected: Disks) -> None:
    """The run, with its tasks, of which the server hears in events, and its place."""
    where.let_go()
    assert where.seen.ended(run, SECONDS).name == "Completed"
    backup = where.seen.flow_run(f"backup {where.guest.name} auto")
    where.seen.tasks(backup, [f"snapshot {where.guest.name}", f"commit {where.guest.name}"])
    wait_until_free(where, SECONDS)
    (point,) = where.cellar.points(where.guest)
    where.cellar.assert_restores(point.id, expected)
    where.cellar.assert_nothing_left(where.guest)
