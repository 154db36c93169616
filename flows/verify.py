"""Checking what is stored: `verify_repository`."""

from __future__ import annotations

from prefect import flow

from flows.parameters import VerifyRepository
from tasks import restore as tasks
from vmcellar.errors import IntegrityError
from vmcellar.repository.scrub import ScrubReport


@flow(name="verify-repository", flow_run_name="verify {request.point}")
async def verify_repository(request: VerifyRepository) -> ScrubReport:
    """Check one point or all. Red when anything is damaged, naming it."""
    if request.point:
        report = tasks.verify_point(request.config, request.point, request.deep)
    else:
        report = tasks.verify_all(request.config, request.deep)
    if report.findings:
        raise IntegrityError(
            f"{len(report.findings)} damaged objects: {report.findings[0]}",
            hint="`vmcellar verify --all --deep` lists the points and disk ranges; the next backup heals what it can",
        )
    return report
