"""What people see of proofs and drills in Prefect: tables of risk and of results, a page per drill, an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect.artifacts import acreate_table_artifact
from prefect.events import emit_event

from tasks.artifacts import or_warn, vm_report
from tasks.pages import evidence_page
from tasks.verify import Outcome
from vmcellar.policy.risk import Risk
from vmcellar.quality.judge import Result

if TYPE_CHECKING:
    from vmcellar.catalog.models import Anomaly

UNVERIFIED = "vmcellar.point.unverified"
ANOMALY = "vmcellar.anomaly.found"
RISKS_SHOWN = 200


async def risk_artifact(risks: Sequence[Risk]) -> None:
    """The order in which points are proven, and why."""
    table = [
        {"VM": each.facts.vm, "point": each.facts.point, "risk": f"{each.score:.1f}", "why": each.why}
        for each in risks[:RISKS_SHOWN]
    ]
    text = f"the {len(table)} of {len(risks)} points with the highest risk"
    await or_warn(acreate_table_artifact(table, key="proof-risks", description=text), None)


async def results_artifact(outcomes: Sequence[Outcome], results: Sequence[Result], page: str) -> None:
    """Every expectation with the points that miss it, then what became of each point."""
    table = [
        {
            "suite": each.suite,
            "expectation": each.reason,
            "severity": each.severity,
            "rows": each.rows,
            "met": "no" if each.missed else "yes",
            "missed by": ", ".join(each.missed),
        }
        for each in results
    ]
    text = f"expectations over this run's evidence{f'; Data Docs on the worker: {page}' if page else ''}"
    await or_warn(acreate_table_artifact(table, key="proof-expectations", description=text), None)
    points = [
        {
            "VM": each.vm,
            "point": each.point,
            "what": each.record.kind if each.record else "not proven",
            "verdict": each.record.verdict if each.record else each.problem,
            "worst": worst_of(each),
        }
        for each in outcomes
    ]
    await or_warn(acreate_table_artifact(points, key="proof-results", description="what became of each point"), None)


async def evidence_artifact(outcome: Outcome) -> None:
    """A page about one piece of evidence: phases, checks, screenshot; none where the VM's name could not be read."""
    record = outcome.record
    if record is not None and record.vm:
        about = f"{record.vm}: {record.kind} of point {record.point} {record.verdict}"
        await vm_report(record.kind, record.vm, evidence_page(record), about)


def emit_unverified(outcome: Outcome) -> None:
    """The event that automations listen for: evidence speaks against a point."""
    emit_event(
        event=UNVERIFIED,
        resource={
            "prefect.resource.id": f"vmcellar.point.{outcome.point}",
            "prefect.resource.name": f"{outcome.vm or 'unknown VM'} {outcome.point}",
            "vmcellar.vm": outcome.vm,
        },
        payload={"point": outcome.point, "vm": outcome.vm, "worst": worst_of(outcome), "evidence": outcome.key},
    )


def emit_anomaly(row: Anomaly) -> None:
    """The event that automations listen for: a VM's backups look strange."""
    emit_event(
        event=ANOMALY,
        resource={
            "prefect.resource.id": f"vmcellar.anomaly.{row.id}",
            "prefect.resource.name": f"{row.vm} {row.kind}",
            "vmcellar.vm": row.vm,
        },
        payload={
            "vm": row.vm, "disks": row.disks, "kind": row.kind, "text": row.text, "began": row.began,
            "pinned": row.pins, "full": row.full, "drill": row.drill,
        },
    )  # fmt: skip


def worst_of(outcome: Outcome) -> str:
    """The first thing that speaks against the point, in words; empty when nothing does."""
    record = outcome.record
    if record is None:
        return outcome.problem
    if record.failed:
        check = record.failed[0]
        return f"{check.name}: expected {check.expected}, found {check.found}"
    return record.expectations[0] if record.expectations else ""
