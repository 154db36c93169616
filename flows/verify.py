"""Checking what is stored, and proving that it restores: `verify_repository`, `drill_point`, `verify_restores`."""

from __future__ import annotations

import time

from prefect import flow

from flows.parameters import DrillPoint, VerifyRepository, VerifyRestores
from tasks import evidence as shown
from tasks import restore as tasks
from tasks import verify
from tasks.control import activity
from tasks.running import TaskThreads
from tasks.runrecords import recorded
from tasks.verify import Outcome
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.policy.risk import Risk, wants_drill
from vmcellar.repository.scrub import ScrubReport

DAY = 86400.0


@flow(name="verify-repository", flow_run_name="verify {request.what}")
@recorded
async def verify_repository(request: VerifyRepository) -> ScrubReport:
    """Check one point or all. Red when anything is damaged, naming it."""
    with activity(request.config, request.point) as work, TaskThreads(work.cancel, 1) as threads:
        if request.point:
            report = await threads.value(tasks.verify_point, request.config, request.point, request.deep)
        else:
            report = await threads.value(tasks.verify_all, request.config, request.deep, request.sample)
    if not report.ok:
        first = report.findings[0]
        raise IntegrityError(
            f"{len(report.findings)} damaged objects; the first: {first.kind} {first.name}: {first.problem}",
            hint="`vmcellar verify --all --deep` lists the points and disk ranges; the next backup heals what it can",
        )
    return report


@flow(name="drill-point", flow_run_name="drill {request.point}")
@recorded
async def drill_point(request: DrillPoint) -> Outcome:
    """Restore a point, boot it alone, check and measure it. Red when it does not live or a check fails."""
    with activity(request.config, "") as work, TaskThreads(work.cancel, 1) as threads:
        outcome = await threads.value(verify.drill, request.config, request.point, request.keep)
    await shown.evidence_artifact(outcome)
    _raise_worst([outcome])
    return outcome


@flow(name="verify-restores", flow_run_name="verify restores of {request.what}")
@recorded
async def verify_restores(request: VerifyRestores) -> list[Outcome]:
    """Prove the points with the highest risk until the time is used up, and drill those that are due.

    Red when any is found bad, or could not be proven; all others are proven all the same.
    """
    with activity(request.config, "") as work, TaskThreads(work.cancel, 1) as threads:
        risks = await threads.value(verify.rank, request.config, request.vms)
        await shown.risk_artifact(risks)
        outcomes = await threads.value(verify.unreadable, request.config)
        deadline = time.monotonic() + 60 * request.minutes
        for risk in risks[: request.most]:
            if time.monotonic() >= deadline:
                break
            proven = await _prove(threads, request, risk)
            for outcome in proven:
                await shown.evidence_artifact(outcome)
            outcomes += proven
        records = [outcome.record for outcome in outcomes if outcome.record is not None]
        results, page = await threads.value(verify.publish, request.config, records)
    await shown.results_artifact(outcomes, results, page)
    _raise_worst(outcomes)
    return outcomes


async def _prove(threads: TaskThreads, request: VerifyRestores, risk: Risk) -> list[Outcome]:
    """One point: its proof, and then a drill if that is due and the proof holds."""
    point = risk.facts.point
    outcome = await threads.value(verify.prove, request.config, point, request.against_source and risk.facts.newest)
    sound = outcome.record is not None and outcome.record.verdict == "passed"
    if not (sound and request.drills and wants_drill(risk.facts, request.drill_days * DAY)):
        return [outcome]
    return [outcome, await threads.value(verify.drill, request.config, point, False)]


def _raise_worst(outcomes: list[Outcome]) -> None:
    """Events and one error for the points that evidence speaks against; else one for what could not be proven."""
    bad = [each for each in outcomes if each.record is not None and each.record.verdict == "failed"]
    for each in bad:
        shown.emit_unverified(each)
    if bad:
        first = bad[0]
        raise IntegrityError(
            f"evidence speaks against {len(bad)} of {len(outcomes)}; the first: {first.vm or 'unknown VM'}, point "
            f"{first.point}: {shown.worst_of(first)}",
            hint=f"`vmcellar show {first.point}` says what was found; the next backup of the VM reads everything",
        )
    problems = [each for each in outcomes if each.record is None and not each.archived and not each.gone]
    if problems:
        first = problems[0]
        raise PermanentError(
            f"{len(problems)} of {len(outcomes)} could not be proven; the first: {first.vm or 'unknown VM'}, point "
            f"{first.point}: {first.problem}"
        )
