"""What `vmcellar deploy`, `vmcellar up` and `deployments.serve` write to a Prefect server, and the plan of it.

What people turned off in the UI stays off: a deployment, schedule or automation that is there keeps that state, also
where its definition changed and is written anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.context import AsyncClientContext
from prefect.exceptions import ObjectNotFound

from deployments import automations
from deployments.wanted import JOB_TAG, TAG, Wanted, automations_of, wanted
from tasks import timetable
from tasks.places import host_limit, shared_limits
from vmcellar.policy.timetable import read_advised

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.deployments.runner import RunnerDeployment
    from prefect.events.schemas.automations import Automation

    from vmcellar.config.model import Config

    Register = Callable[[RunnerDeployment], Awaitable[UUID]]


@dataclass(frozen=True, slots=True)
class Off:
    """Something of ours that somebody paused or disabled in the UI."""

    kind: Literal["deployment", "schedule", "automation"]
    name: str


@dataclass(slots=True)
class Plan:
    """What is on the server and what should be; nothing done yet. `new_automations` and `changed_automations` are
    names; `off` is what is there and stays turned off.
    """

    where: str
    options: dict[str, Any]
    new: list[Wanted] = field(default_factory=list)
    there: list[Wanted] = field(default_factory=list)
    gone: list[tuple[str, DeploymentResponse]] = field(default_factory=list)
    new_automations: list[str] = field(default_factory=list)
    changed_automations: list[str] = field(default_factory=list)
    gone_automations: list[Automation] = field(default_factory=list)
    off: list[Off] = field(default_factory=list)


async def plan(config: Config | None, where: str, **options: Any) -> Plan:
    """Compare. `options` are Prefect's for each deployment, such as `work_pool_name`.

    Gone are deployments of jobs of this place that the configuration does not have any more, and automations of ours
    that nothing wants any more; no other is touched, and without a configuration none.
    """
    found = await deployed(where)
    made = Plan(where, options)
    everything = wanted(config, where)
    for each in everything:
        (made.there if each.full_name in found else made.new).append(each)
    expected = {each.full_name for each in everything}
    if config is not None:
        made.gone = [(name, each) for name, each in found.items() if name not in expected and JOB_TAG in each.tags]
    for name in sorted(expected & set(found)):
        made.off += _off(name, found[name])
    await _plan_automations(made, found)
    if config is not None:
        async with get_client() as client:
            there = await automations.all_of(client, automations_of(where))
        kept = {one.name for each in everything for one in each.automations}
        made.gone_automations = [each for each in there if each.name not in kept]
    return made


def _off(name: str, there: DeploymentResponse) -> list[Off]:
    paused = [Off("deployment", name)] if there.paused else []
    schedules = [each.slug for each in there.schedules if not each.active and timetable.is_ours(each)]
    return [*paused, *(Off("schedule", f"{slug} of {name}") for slug in schedules)]


async def _plan_automations(made: Plan, found: dict[str, DeploymentResponse]) -> None:
    async with get_client() as client:
        for each in [*made.new, *made.there]:
            deployment = found.get(each.full_name)
            for one in each.automations:
                there = await automations.standing(client, one.name)
                if there is None:
                    made.new_automations.append(one.name)
                    continue
                if deployment is None or not automations.is_as(there, one.made(deployment.id)):
                    made.changed_automations.append(one.name)
                if not there.enabled:
                    made.off.append(Off("automation", one.name))


async def apply(made: Plan, config: Config | None, register: Register | None = None) -> list[timetable.Change]:
    """Register, remove, set the limits, then bring the schedules in line; the schedules that changed.

    `register` takes each deployment to the server, and gives its id; without one, Prefect's `aapply` does.
    """
    async with AsyncClientContext.get_or_create():  # one for all: each of Prefect's loads all certificate authorities
        for each in [*made.new, *made.there]:
            await put(each, register, **made.options)
    if config is None:
        return []
    async with get_client() as client:
        for _, deployment in made.gone:
            await client.delete_deployment(deployment.id)
        for automation in made.gone_automations:
            await client.delete_automation(automation.id)
        for name, places in {host_limit(): config.limits.vms, **shared_limits(config.limits)}.items():
            await client.upsert_global_concurrency_limit_by_name(name, places)
    todo = await schedule_changes(config, made.where)
    await timetable.apply(todo)
    return todo


async def put(each: Wanted, register: Register | None = None, **options: Any) -> UUID:
    """Register one deployment with its automations; its id. Without being told, Prefect would unpause it."""
    async with get_client() as client:
        enabled = {}
        for one in each.automations:  # first: Prefect deletes those that an earlier version made as triggers
            there = await automations.standing(client, one.name)
            enabled[one.name] = there is None or there.enabled
        deployment = each.deployment(paused=await _is_paused(client, each.full_name), **options)
        made = await (deployment.aapply() if register is None else register(deployment))
        for one in each.automations:
            await automations.put(client, one, made, enabled=enabled[one.name])
    return made


async def _is_paused(client: PrefectClient, name: str) -> bool:
    try:
        return (await client.read_deployment_by_name(name)).paused
    except ObjectNotFound:
        return False


async def register(config: Config | None, where: str) -> None:
    """Plan and apply at once."""
    await apply(await plan(config, where), config)


async def schedule_changes(config: Config, where: str) -> list[timetable.Change]:
    """What has to change of the schedules of deployments that are there."""
    return await timetable.changes(timetable.timetable(config, read_advised(config.state), where))


async def deployed(where: str) -> dict[str, DeploymentResponse]:
    """The deployments of a place that are on the server, by FLOW/DEPLOYMENT."""
    tags = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG, f"{TAG}-{where}"]))
    found: dict[str, DeploymentResponse] = {}
    async with get_client() as client:
        while page := await client.read_deployments(deployment_filter=tags, limit=PAGE, offset=len(found)):
            for each in page:
                flow = await client.read_flow(each.flow_id)
                found[f"{flow.name}/{each.name}"] = each
    return found


PAGE = 200
