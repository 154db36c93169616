"""Automations that start a deployment when something happened: made once, changed where their definition changed.

Prefect's own way, a deployment's triggers, deletes and makes them anew at each registration, and so would enable what
somebody had disabled in the UI. These are known by their names alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect.events import EventTrigger
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import Automation, AutomationCore

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient


@dataclass(frozen=True, slots=True)
class WantedAutomation:
    """One automation as it should be; it runs the deployment that it belongs to, with an empty request."""

    name: str
    trigger: EventTrigger

    def made(self, deployment: UUID, *, enabled: bool = True) -> AutomationCore:
        """As Prefect has it."""
        action = RunDeployment(
            source="selected", deployment_id=deployment, parameters={"request": {}}, job_variables=None
        )
        made = AutomationCore(name=self.name, enabled=enabled, trigger=self.trigger, actions=[action])
        return AutomationCore.model_validate(
            made.model_dump(exclude={"owner_resource"})
        )  # all is set: an update sends that


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
