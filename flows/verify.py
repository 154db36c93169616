"""Checking what is stored: `verify_repository`."""

from __future__ import annotations

from prefect import flow

from flows.parameters import VerifyRepository
from tasks import restore as tasks
from tasks.control import activity
from tasks.running import TaskThreads
from vmcellar.errors import IntegrityError
from vmcellar.repository.scrub import ScrubReport


@flow(name="verify-repository", flow_run_name="verify {request.what}")
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
