"""Looking at the history: `analyse_history` judges it first, then publishes tables and plots of what is good of it."""

from __future__ import annotations

from prefect import flow

from flows.parameters import AnalyseHistory
from tasks import analysis as tasks
from tasks.artifacts import analysis_artifacts, quality_artifact
from tasks.control import activity
from tasks.running import TaskThreads


@flow(name="analyse-history", flow_run_name="analyse history")
async def analyse_history(request: AnalyseHistory) -> dict[str, int]:
    """Publish quality, capacity, RPO, RTO, anomalies and forecasts; rows that are not used are shown, not fatal."""
    with activity(request.config, "history") as work, TaskThreads(work.cancel, 1) as threads:
        quality = await threads.value(tasks.check_history, request.config)
        await quality_artifact(quality.markdown, ok=quality.ok)
        result = await threads.value(tasks.analyse_history, request.config)
        await analysis_artifacts(result.markdown, result.images)
    return {"runs": quality.runs, "rows": quality.rows, "bad_rows": quality.bad, "plots": len(result.images)}
