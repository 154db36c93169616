"""Looking at the history: `analyse_history` judges it first, then publishes tables and plots of what is good of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prefect import flow, get_run_logger

from flows.parameters import AnalyseHistory
from tasks import analysis as tasks
from tasks import evidence as shown
from tasks import verify
from tasks.artifacts import analysis_artifacts, quality_artifact
from tasks.control import activity
from tasks.running import TaskThreads
from tasks.runrecords import recorded

if TYPE_CHECKING:
    from vmcellar.catalog.models import Anomaly


@flow(name="analyse-history", flow_run_name="analyse history")
@recorded
async def analyse_history(request: AnalyseHistory) -> dict[str, int]:
    """Publish quality, capacity, RPO, RTO, anomalies and forecasts; rows that are not used are shown, not fatal.

    What follows from an anomaly by `on_anomaly:` is done first: pins, forced fulls, events, drills. Points and maps
    that are met and damaged are named, in warnings and on the page, and end nothing.
    """
    with activity(request.config, "history") as work, TaskThreads(work.cancel, 1) as threads:
        quality, good = await threads.value(tasks.check_history, request.config)
        await quality_artifact(quality.markdown, ok=quality.ok)
        rows = await threads.value(tasks.act_on_anomalies, request.config, good)
        await _tell_and_drill(threads, request.config, rows)
        result = await threads.value(tasks.analyse_history, request.config, good)
        damaged = {*quality.damaged, *result.damaged}
        for each in sorted(damaged):
            get_run_logger().warning("damaged: %s (`vmcellar verify --all` says more)", each)
        await analysis_artifacts(result.markdown, result.images)
    return {
        "runs": quality.runs,
        "rows": quality.rows,
        "bad_rows": quality.bad,
        "plots": len(result.images),
        "anomalies": len(rows),
        "damaged": len(damaged),
    }


async def _tell_and_drill(threads: TaskThreads, config: str, rows: list[Anomaly]) -> None:
    """An event for each, once, and the drills that the policy asks for; a drill that fails is evidence, not an end."""
    for row in rows:
        if row.told is None:
            shown.emit_anomaly(row)
            row.told = time.time()
            await threads.value(tasks.note_anomalies, config, row, "told")
        if row.drill != "" and await threads.value(tasks.claim_drill, config, row):
            outcome = await threads.value(verify.drill, config, f"{row.vm}@latest", False)
            await shown.evidence_artifact(outcome)
            row.drill = f"{outcome.point}: {outcome.record.verdict if outcome.record else outcome.problem}"
            await threads.value(tasks.note_anomalies, config, row, "drill")
