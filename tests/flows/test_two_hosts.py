"""Two hosts, each with its own libvirt and worker, back up into one repository while it is pruned and collected: with
VMCELLAR_FAULTS=1. `tests/proof/test_two_hosts.py` is the same without Prefect.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.require import requires
from lab.waiting import wait_for
from tests.flows.hosts import SECONDS, Site, site
from tests.flows.seen import Seen
from tests.proof.cellar import MIB, job_runs
from vmcellar.config.jobs import KeepByAge
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.upkeep import gc, prune

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.prefect,
    pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="half a minute: set VMCELLAR_FAULTS=1"),
]


def test_two_workers_back_up_into_one_repository_while_it_is_pruned_and_collected(
    seen: Seen, environment: dict[str, str], vm_tmp: Path
) -> None:
    requires("root")
    (vm_tmp / "repository").mkdir()
    with ExitStack() as stack:
        sites = [
            stack.enter_context(site(vm_tmp, name, seen, environment, vm_tmp / "repository"))
            for name in ("north", "south")
        ]
        deploys = [each.start_deploy() for each in sites]
        for number, each in enumerate(sites):  # the first point of each is dropped below
            each.cellar.backup(each.guest)
            each.guest.poke("vda", 2 * MIB, MIB, seed=10 + number)
            each.cellar.backup(each.guest)
            each.guest.poke("vdb", 0, 2 * MIB, seed=20 + number)
        assert [each.wait(SECONDS) for each in deploys] == [0, 0]
        for each in sites:
            each.start_worker()
        back_up_both(sites)


def test_a_place_that_hosts_share_is_taken_by_one_at_a_time(
    seen: Seen, environment: dict[str, str], vm_tmp: Path
) -> None:
    requires("root")
    (vm_tmp / "repository").mkdir()
    with ExitStack() as stack:
        north, south = (
            stack.enter_context(
                site(vm_tmp, name, seen, environment, vm_tmp / "repository", vms=2, shared={"san-a": 1})
            )
            for name in ("north", "south")
        )
        assert [deploy.wait(SECONDS) for deploy in (north.start_deploy(), south.start_deploy())] == [0, 0]
        for each in (north, south):
            each.start_worker()
        first = north.trigger()
        north.wait_held()
        second = south.trigger()
        wait_for(lambda: seen.state(second).is_running(), "the job of the other host to begin", seconds=SECONDS)
        south.let_go()
        north.let_go()
        assert [seen.ended(run, SECONDS).name for run in (first, second)] == ["Completed"] * 2
        ended, begun = (seen.flow_run(f"backup {each.guest.name} auto") for each in (north, south))
        assert ended.end_time is not None
        assert begun.start_time is not None
        assert ended.end_time <= begun.start_time


def back_up_both(sites: list[Site]) -> None:
    """At the same time, and what they need is not taken from them."""
    expected = [each.cellar.reference(each.guest) for each in sites]
    runs = [each.trigger() for each in sites]
    for each in sites:
        each.wait_held()
    assert all(job_runs(each.guest) for each in sites), "both hold their VMs at this moment"
    repository = Repository.open(sites[0].cellar.config)
    assert drop_all_but_the_last(repository) == len(sites)
    for _ in range(2):
        gc.collect(repository, grace=0)
    for each in sites:
        each.let_go()
    for each, run, disks in zip(sites, runs, expected, strict=True):
        assert each.seen.ended(run, SECONDS).name == "Completed"
        points = each.cellar.points(each.guest)
        assert points[-1].parent == points[-2].id
        each.cellar.assert_restores(points[-1].id, disks)
        each.cellar.assert_nothing_left(each.guest)
    drop_all_but_the_last(repository)
    for _ in range(2):
        gc.collect(repository, grace=0)
    assert verify_all(Repository.open(sites[1].cellar.config), deep=True).ok


def drop_all_but_the_last(repository: Repository) -> int:
    """As `vmcellar prune --keep-last 1`; how many points went."""
    rules = prune.rules_for_all(KeepByAge(last=1))
    return len(prune.drop(repository, prune.plan(repository.points(), rules, pins=(), now=repository.clock())))
