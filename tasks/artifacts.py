"""What people see of a run in the UI: a progress bar with rate and time left, and reports. Keys are `[a-z0-9-]`."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from prefect.artifacts import (
    acreate_image_artifact,
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.client.orchestration import get_client

from tasks.control import Activity
from tasks.links import KINDS, artifact_key, lead_to, linked, links_to_backups, newest, reports_of
from tasks.pages import ROWS_MOST, Result, Standing, fleet_page, fleet_vms, job_page, restore_page
from tasks.patience import patient
from vmcellar.backup.model import PointSummary
from vmcellar.backup.report import eta, markdown_report, size_text
from vmcellar.policy.governing import promised
from vmcellar.upkeep.gcreport import GcReport
from vmcellar.upkeep.prune import Decision
from vmcellar.upkeep.rebalance import RebalanceReport
from vmcellar.upkeep.tierstat import TierSummary

if TYPE_CHECKING:
    from vmcellar.analysis.advise import Advice
    from vmcellar.analysis.gains import Gain
    from vmcellar.catalog.conditions import Condition
    from vmcellar.config.jobs import BackupJob
    from vmcellar.restore.report import RestoreReport

log = logging.getLogger(__name__)
T = TypeVar("T")

UPDATE_SECONDS = 5.0
"""How often the progress bar moves: each move is a request to the server."""

LAST_SECONDS = 5.0
"""How long the end of the reading waits for the bar's last move: a server that was lost must not hold up a commit."""


@asynccontextmanager
async def progress_artifact(vm: str, activity: Activity) -> AsyncIterator[None]:
    """Show how far the reading is for as long as the block lasts; small runs, which end at once, get none."""
    ended = asyncio.Event()
    watcher = asyncio.create_task(_watch(vm, activity, ended))
    try:
        yield
    finally:
        ended.set()
        await asyncio.wait([watcher], timeout=LAST_SECONDS)
        watcher.cancel()


async def vm_report(kind: str, vm: str, markdown: str, description: str) -> None:
    """Publish a report about a VM, with links to the newest of the other kinds, and let those lead to this one. Backups
    come so often that only the first one is told to the others.
    """
    key = artifact_key(kind, vm)
    async with get_client() as client:
        there = await or_warn(newest(client, [artifact_key(each, vm) for each in KINDS]), {})
        text = linked(markdown, kind, vm, reports_of(vm, there))
        made = await or_warn(acreate_markdown_artifact(key=key, markdown=text, description=description), None)
        if made is not None and (kind != "backup" or key not in there):
            await or_warn(lead_to(client, kind, vm, made, there), None)


async def _links_to_backups(vms: Sequence[str]) -> dict[str, str]:
    async with get_client() as client:
        keys = [artifact_key("backup", vm) for vm in vms]
        return links_to_backups(vms, await or_warn(newest(client, keys), {}))


async def report_artifact(point: PointSummary) -> None:
    """Publish the report of a committed point."""
    await vm_report("backup", point.vm, markdown_report(point), f"{point.vm}: {point.kind} point {point.id}")


async def restore_artifact(report: RestoreReport, defined: str) -> None:
    """Publish what came back, where it lies, and what was lost; `defined` is the new VM's name, if there is one."""
    about = f"{report.vm}: point {report.point} restored"
    await vm_report("restore", report.vm, restore_page(report, defined, socket.gethostname()), about)


async def job_artifact(job: str, results: Mapping[str, Result]) -> None:
    """Publish a job's result: a row per VM, those that make it red first, then those that are off."""
    text = job_page(job, results, await _links_to_backups([*results]))
    await or_warn(acreate_markdown_artifact(key=artifact_key("job", job or "backup"), markdown=text), None)


async def quality_artifact(markdown: str, *, ok: bool) -> None:
    """Publish how good the history is that the analysis goes by."""
    title = "The history is sound" if ok else "Some of the history is not used"
    text = f"# {title}\n\n{markdown}\n"
    await or_warn(acreate_markdown_artifact(key="history-quality", markdown=text, description=title), None)


async def analysis_artifacts(markdown: str, images: Mapping[str, bytes]) -> None:
    """Publish the tables on one page and each plot as an image of its own; an image is its own address."""
    page = acreate_markdown_artifact(key="history", markdown=markdown, description="What the history tells")
    await or_warn(page, None)
    for name, image in images.items():
        uri = "data:image/png;base64," + base64.b64encode(image).decode()
        made = acreate_image_artifact(image_url=uri, key=artifact_key("plot", name), description=name.replace("-", " "))
        await or_warn(made, None)


async def tiers_artifact(report: RebalanceReport, standing: Sequence[TierSummary]) -> None:
    """Publish what was moved, and what lies where now."""
    moved = [{"pack": move.key, "from": ", ".join(move.tiers), "to": ", ".join(move.copy), "why": move.why}
             for move in report.moves]  # fmt: skip
    stuck = [{"pack": held.key, "from": ", ".join(held.tiers), "to": "", "why": held.why} for held in report.held]
    failed = [{"pack": each.key, "from": "", "to": "", "why": each.why} for each in report.failed]
    title = "Packs that would be moved" if report.dry_run else "Packs that were moved, and those that were not"
    rows = [*failed, *stuck, *moved][:ROWS_MOST]
    await or_warn(acreate_table_artifact(table=rows, key="moves-between-tiers", description=title), None)
    lying = [
        {
            "tier": tier.name,
            "packs": tier.packs,
            "bytes": size_text(tier.bytes),
            "only here": size_text(tier.alone),
            "per month": f"{tier.cost_month:.2f}",
            "free": "" if tier.free is None else size_text(tier.free),
            "where": tier.away or tier.place,
        }
        for tier in standing
    ]
    await or_warn(acreate_table_artifact(table=lying, key="tiers", description="What lies on which tier"), None)


async def upkeep_artifact(plan: Sequence[Decision], gone: Collection[str], report: GcReport) -> None:
    """Publish what upkeep kept, dropped and freed: a row per point, those that go first."""
    would = "would be " if report.dry_run else ""
    freed = f"{would}deleted: {len(report.deleted)} packs, {size_text(report.deleted_bytes)}"
    marked = f"{would}marked: {len(report.marked)} packs, {size_text(report.marked_bytes)}"
    lines = [f"# {len(plan) - len(gone)} points stay, {len(gone)} go", "", f"{freed}; {marked}", ""]
    lines += ["| point | VM | | why |", "|---|---|---|---|"]
    for decision in sorted(plan, key=lambda decision: decision.keep):
        verdict, why = _verdict(decision, gone)
        lines.append(f"| `{decision.point.id}` | {decision.point.vm} | {verdict} | {why} |")
    await or_warn(acreate_markdown_artifact(key="upkeep", markdown="\n".join(lines[:ROWS_MOST])), None)


def _verdict(decision: Decision, gone: Collection[str]) -> tuple[str, str]:
    if decision.keep:
        return "keep", decision.why
    if decision.point.id in gone:
        return "**drop**", decision.why
    return "**held**", f"{decision.why}, but it is locked or was pinned meanwhile"


async def advice_artifact(advice: Advice) -> None:
    """Publish each VM's schedule before and after, what both mean, and why; those that change first."""
    rows = [
        {
            "VM": one.vm,
            "today": _starts(one.before),
            "advised": "the same" if one.before == one.after else _starts(one.after),
            "breaches a year": f"{one.was.breaches * 365:.0f} to {one.will.breaches * 365:.0f}",
            "hours over a year": f"{one.was.late_hours * 365:.0f} to {one.will.late_hours * 365:.0f}",
            "seconds a day": f"{one.was.seconds:.0f} to {one.will.seconds:.0f}",
            "decided by a tier": "; ".join(one.decided),
            "why": one.why,
        }
        for one in sorted(advice.changes, key=lambda one: (one.before == one.after, one.vm))[:ROWS_MOST]
    ]
    title = f"Schedules before and after (UTC); cannot be had: {'; '.join(advice.conflicts) or 'nothing'}"
    title += f"; not taken into account: {'; '.join(advice.unknown)}" if advice.unknown else ""
    await or_warn(acreate_table_artifact(table=rows, key="schedules-advised", description=title), None)


async def gains_artifact(gains: Sequence[Gain]) -> None:
    """Publish what applied advice really brought, beside what was predicted."""
    rows = [
        {
            "VM": one.vm,
            "since": _when(one.time),
            "days": f"{one.after.days:.1f}",
            "breaches before": _count(one.before.breaches),
            "predicted": f"{one.expected:.1f}",
            "came": _count(one.after.breaches),
            "seconds a day before": f"{one.before.seconds:.0f}",
            "work predicted": f"{one.work:.0f}",
            "work that came": f"{one.after.seconds:.0f}",
            "verdict": one.verdict,
        }
        for one in gains[:ROWS_MOST]
    ]
    title = "What applied schedules really brought"
    await or_warn(acreate_table_artifact(table=rows, key="schedule-gains", description=title), None)


def _count(number: int | None) -> str:
    return "no RPO" if number is None else str(number)


def _starts(starts: Sequence[int]) -> str:
    times = [f"{start // 60:02}:{start % 60:02}" for start in starts]
    return times[0] if len(times) == 1 else f"{len(times)} times from {times[0]}"


async def schedules_artifact(changed: Sequence[str]) -> None:
    """Publish what was changed of the schedules."""
    text = "\n".join(["# Schedules", "", *(f"- {line}" for line in changed or ["as they should be"])])
    await or_warn(acreate_markdown_artifact(key="schedules", markdown=text), None)


async def fleet_artifact(standing: Standing, found: Sequence[Condition], jobs: Sequence[BackupJob]) -> None:
    """Publish where every VM and tier stands, what is wrong first."""
    rpo = {row["vm"]: promised(jobs, row["vm"], row["job"] or "").rpo for row in standing["newest"]}
    links = await _links_to_backups(fleet_vms(standing))
    text = fleet_page(standing, found, rpo, time.time(), links)
    await or_warn(acreate_markdown_artifact(key="fleet", markdown=text), None)


def _when(time: float | None) -> str:
    return "never" if time is None else f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC"


async def _watch(vm: str, activity: Activity, ended: asyncio.Event) -> None:
    shown: UUID | None = None
    while not await _within(UPDATE_SECONDS, ended):
        shown = await or_warn(_show(vm, activity, shown), shown)
    if shown is not None:
        await or_warn(_show(vm, activity, shown), shown)


async def _show(vm: str, activity: Activity, shown: UUID | None) -> UUID:
    percent = min(100.0, 100.0 * activity.done("export") / activity.total) if activity.total else 100.0
    text = f"{vm}: {eta(activity.done('export'), activity.total or 0, activity.started)}"
    if shown is None:
        return await acreate_progress_artifact(percent, key=artifact_key("progress", vm), description=text)
    await aupdate_progress_artifact(shown, progress=percent, description=text)
    return shown


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def or_warn(request: Awaitable[T], otherwise: T) -> T:
    """What people are shown must never turn a backup red, or stop one."""
    try:
        return await patient(request)
    except Exception as error:
        log.warning("the Prefect server did not take an artifact: %s", error)
        return otherwise
