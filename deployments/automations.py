"""Automations that start a deployment when something happened: made once, changed where their definition changed.

Prefect's own way, a deployment's triggers, deletes and makes them anew at each registration, and so would enable what
somebody had disabled in the UI. These are known by their names alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.sorting import AutomationSort
from prefect.events import EventTrigger
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import Automation, AutomationCore

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

PAGE = 200


@dataclass(frozen=True, slots=True)
class WantedAutomation:
    """One automation as it should be; it runs the deployment that it belongs to, with this request."""

    name: str
    trigger: EventTrigger
    request: dict[str, Any] = field(default_factory=dict)

    def made(self, deployment: UUID, *, enabled: bool = True) -> AutomationCore:
        """As Prefect has it."""
        action = RunDeployment(
            source="selected", deployment_id=deployment, parameters={"request": self.request}, job_variables=None
        )
        made = AutomationCore(name=self.name, enabled=enabled, trigger=self.trigger, actions=[action])
        return AutomationCore.model_validate(
            made.model_dump(exclude={"owner_resource"})
        )  # all is set: an update sends that


async def all_of(client: PrefectClient, beginnings: tuple[str, ...]) -> list[Automation]:
    """The automations on the server whose names begin with one of these."""
    found: list[Automation] = []
    seen = 0
    while page := await client.read_automations(sort=AutomationSort.NAME_ASC, limit=PAGE, offset=seen):
        seen += len(page)
        found += [each for each in page if each.name.startswith(beginnings)]
    return found


async def standing(client: PrefectClient, name: str) -> Automation | None:
    """The automation of this name that is on the server."""
    found = await client.read_automations_by_name(name)
    return found[0] if found else None


def is_as(there: Automation, wanted: AutomationCore) -> bool:
    """Whether it does what it should, enabled or not."""
    return (there.trigger.model_dump(), [each.model_dump() for each in there.actions]) == (
        wanted.trigger.model_dump(),
        [each.model_dump() for each in wanted.actions],
    )


async def put(client: PrefectClient, wanted: WantedAutomation, deployment: UUID, *, enabled: bool) -> None:
    """Make it, enabled or not; or change it, if it differs, and leave it as enabled as it is."""
    there = await standing(client, wanted.name)
    if there is None:
        await client.create_automation(wanted.made(deployment, enabled=enabled))
    elif not is_as(there, wanted.made(deployment)):
        await client.update_automation(there.id, wanted.made(deployment, enabled=there.enabled))
