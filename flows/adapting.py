"""Schedules that follow what the history tells: `adapt_schedules` advises, applies, takes back and reports gains."""

from __future__ import annotations

from prefect import flow

from flows.parameters import AdaptSchedules, Schedules
from flows.schedules import reconcile_schedules
from tasks import analysis as tasks
from tasks.artifacts import advice_artifact, gains_artifact, quality_artifact
from tasks.control import activity
from tasks.running import TaskThreads
from tasks.runrecords import recorded


@flow(name="adapt-schedules", flow_run_name="adapt schedules: {request.action}")
@recorded
async def adapt_schedules(request: AdaptSchedules) -> dict[str, int]:
    """Show what another schedule would bring each VM, before beside after; `apply` makes it so, `undo` takes it back.

    The history is judged first: rows that are not used are shown. The server's schedules are written by
    `reconcile_schedules`, which owns them. What was applied before is compared with what was predicted of it.
    """
    changed: tuple[str, ...] = ()
    with activity(request.config, "schedules") as work, TaskThreads(work.cancel, 1) as threads:
        if request.action == "undo":
            changed = await threads.value(tasks.undo_advice, request.config)
        else:
            quality, good = await threads.value(tasks.check_history, request.config)
            await quality_artifact(quality.markdown, ok=quality.ok)
            wishes = (request.budget, request.even)
            advice, gains = await threads.value(tasks.advise_schedules, request.config, good, *wishes)
            await advice_artifact(advice)
            await gains_artifact(gains)
            if request.action == "apply":
                changed = (await threads.value(tasks.apply_advice, request.config, advice)).changed
    if request.action == "show":
        return {"advised": sum(one.before != one.after for one in advice.changes), "changed": 0}
    lines = await reconcile_schedules(Schedules(config=request.config, where=request.where))
    return {"changed": len(changed), "on_the_server": len(lines)}
