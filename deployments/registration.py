"""What `vmcellar deploy`, `vmcellar up` and `deployments.serve` write to a Prefect server, and the plan of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

from deployments.wanted import JOB_TAG, TAG, Wanted, wanted
from tasks import timetable
from tasks.places import host_limit, shared_limits
from vmcellar.policy.timetable import read_advised

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

    from vmcellar.config.model import Config


@dataclass(slots=True)
class Plan:
    """What is on the server and what should be; nothing done yet."""

    where: str
    options: dict[str, Any]
    new: list[Wanted] = field(default_factory=list)
    there: list[Wanted] = field(default_factory=list)
    gone: list[tuple[str, DeploymentResponse]] = field(default_factory=list)


async def plan(config: Config, where: str, **options: Any) -> Plan:
    """Compare. `options` are Prefect's for each deployment, such as `work_pool_name`.

    Gone are deployments of jobs of this place that the configuration does not have any more; no other is touched.
    """
    found = await deployed(where)
    made = Plan(where, options)
    for each in wanted(config, where):
        (made.there if each.full_name in found else made.new).append(each)
    expected = {each.full_name for each in wanted(config, where)}
    made.gone = [(name, each) for name, each in found.items() if name not in expected and JOB_TAG in each.tags]
    return made


async def apply(made: Plan, config: Config) -> list[timetable.Change]:
    """Register, remove, set the limits, then bring the schedules in line; the schedules that changed."""
    for each in [*made.new, *made.there]:
        await each.deployment(**made.options).aapply()
    async with get_client() as client:
        for _, deployment in made.gone:
            await client.delete_deployment(deployment.id)
        for name, places in {host_limit(): config.limits.vms, **shared_limits(config.limits)}.items():
            await client.upsert_global_concurrency_limit_by_name(name, places)
    todo = await schedule_changes(config, made.where)
    await timetable.apply(todo)
    return todo


async def register(config: Config, where: str) -> None:
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
