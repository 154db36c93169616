"""Making room: `upkeep_repository` drops points by the jobs' retention and collects garbage."""

from __future__ import annotations

from prefect import flow

from flows.parameters import Upkeep
from tasks import upkeep as tasks
from tasks.artifacts import upkeep_artifact
from tasks.control import activity
from tasks.running import TaskThreads
from tasks.runrecords import recorded


@flow(name="upkeep-repository", flow_run_name="upkeep {request.what}")
@recorded
async def upkeep_repository(request: Upkeep) -> dict[str, int]:
    """Prune, then gc, then note how full the tiers are; what went, in numbers; `held` are points that are locked, or
    were pinned meanwhile.

    Red when anything cannot be read: then nothing is collected.
    """
    config = request.config
    with activity(config, tasks.ACTIVITY) as work, TaskThreads(work.cancel, 1) as threads:
        pruned = await threads.value(tasks.prune, config, request.dry_run)
        report = await threads.value(tasks.collect_garbage, config, request.grace, request.dry_run)
        if not request.dry_run:
            await threads.value(tasks.note_room, config)
    await upkeep_artifact(pruned.plan, pruned.gone, report)
    to_go = sum(not decision.keep for decision in pruned.plan)
    return {
        "kept": len(pruned.plan) - to_go,
        "dropped": len(pruned.gone),
        "held": to_go - len(pruned.gone),
        "deleted_packs": len(report.deleted),
        "deleted_bytes": report.deleted_bytes,
        "marked_packs": len(report.marked),
    }
