"""The life of packs: `rebalance_tiers`."""

from __future__ import annotations

from prefect import flow

from flows.parameters import RebalanceTiers
from tasks import lifecycle as tasks
from tasks.artifacts import tiers_artifact
from tasks.control import activity
from tasks.running import TaskThreads
from tasks.runrecords import recorded
from vmcellar.errors import IntegrityError
from vmcellar.upkeep.rebalance import RebalanceReport


@flow(name="rebalance-tiers", flow_run_name="rebalance tiers")
@recorded
async def rebalance_tiers(request: RebalanceTiers) -> RebalanceReport:
    """Move packs to where `placement:` says, make missing copies, mirror the rest. Red when a pack is lost or stays."""
    with activity(request.config, "") as work, TaskThreads(work.cancel, 1) as threads:
        report = await threads.value(
            tasks.move_packs, request.config, request.at_once, request.bytes_per_second, request.dry_run
        )
        standing = await threads.value(tasks.tiers, request.config)
    await tiers_artifact(report, standing)
    if report.lost:
        raise IntegrityError(
            f"{len(report.lost)} packs that restore points need are lost, such as {report.lost[0]}",
            hint="`vmcellar verify --all` names the points and disk ranges, `--repair --from TIER` brings back what a "
            "tier has of them, the next backup heals what it can",
        )
    if report.failed:
        first = report.failed[0]
        raise IntegrityError(f"{len(report.failed)} packs were not moved; the first: {first.key}: {first.why}")
    kept = [text for mirror in report.mirrors for text in mirror.kept]
    if kept:
        raise IntegrityError(f"{len(kept)} objects were not mirrored; the first: {kept[0]}")
    return report
