"""Seeing that something is wrong before it is needed: `watch_fleet`."""

from __future__ import annotations

from prefect import flow

from flows.parameters import Watch
from tasks import watch as tasks
from tasks.artifacts import fleet_artifact
from tasks.running import TaskThreads
from tasks.runrecords import recorded
from vmcellar.catalog.metrics import standing
from vmcellar.progress import CancelToken


@flow(name="watch-fleet", flow_run_name="watch the fleet")
@recorded
async def watch_fleet(request: Watch) -> dict[str, int]:
    """Look at all VMs and tiers, publish the overview, and tell people what began and what is over."""
    with TaskThreads(CancelToken(), 1) as threads:
        found = await threads.value(tasks.look, request.config)
        sent, waiting = await threads.value(tasks.notify, request.config)
        await threads.value(tasks.ping, request.config)
    stand = standing(tasks.history(request.config))
    await fleet_artifact(stand, found, tasks.settings_of(request.config).backups)
    return {"conditions": len(found), "told": sent, "waiting": waiting}
