"""What people see of proofs and drills in Prefect: tables of risk and of results, a page per drill, an event."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.events import emit_event

from tasks.artifacts import artifact_key, links, or_warn
from tasks.verify import SCREEN_SHOWN, Outcome
from vmcellar.policy.risk import Risk
from vmcellar.quality.judge import Result
from vmcellar.repository.evidence import Check, Evidence

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
    """A page about one piece of evidence: phases, checks, screenshot."""
    if outcome.record is not None:
        key = artifact_key(outcome.record.kind, outcome.vm)
        await or_warn(acreate_markdown_artifact(key=key, markdown=page_of(outcome.record)), None)


def page_of(record: Evidence) -> str:
    """The evidence as Markdown; a screenshot that is not too large stands in it."""
    lines = [
        f"# {record.kind} of {record.vm}, point `{record.point}`: {record.verdict}",
        "",
        f"Restored, running and checked in {record.rto:.1f} s." if record.rto is not None else "",
        "",
        "| phase | seconds |",
        "|---|---|",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in record.seconds.items()),
        "",
        "| check | expected | found | |",
        "|---|---|---|---|",
        *map(_check_row, record.checks),
        "",
        links(record.vm),
    ]
    if record.screenshot and len(record.screenshot) <= SCREEN_SHOWN:
        lines += ["", f"![screen](data:image/png;base64,{base64.b64encode(record.screenshot).decode()})"]
    return "\n".join(lines)


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


def _check_row(check: Check) -> str:
    met = "ok" if check.ok else "**no**"
    return f"| {_cell(check.name)} | {_cell(check.expected)} | {_cell(check.found)} | {met} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
