"""Going on without Prefect where its server is lost in the midst of a job: a backup needs none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from tasks.control import Activity, activity, engine_of, witnessed
from tasks.patience import PrefectLostError, patient, server_is_lost
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest, PointSummary
from vmcellar.errors import VmcellarError

log = logging.getLogger(__name__)


def is_of_prefect(error: BaseException) -> bool:
    """Whether Prefect, its HTTP client or its server failed, rather than our own code."""
    if isinstance(error, PrefectLostError):
        return True
    return type(error).__module__.partition(".")[0] in ("prefect", "httpx", "httpcore") or "Prefect" in str(error)


async def or_without(config: str, request: BackupRequest, flow: Coroutine[Any, Any, PointSummary]) -> PointSummary:
    """What `flow`, which backs the VM of `request` up, gives; where Prefect fails it, its point, or one made without.

    Raises what the flow raises when the backup itself failed.
    """
    if await server_is_lost():
        flow.close()
        log.warning("%s: the Prefect server does not answer: backing up without it", request.vm)
        return await _without(config, request)
    with witnessed() as ended:
        try:
            return await patient(flow, over=lambda: request.vm in ended)
        except Exception as error:
            work = ended.get(request.vm, Activity())
            if not is_of_prefect(error):
                raise
            if isinstance(work.failure, VmcellarError):
                raise work.failure from error
            log.warning("%s: Prefect was lost (%s): going on without it", request.vm, error or type(error).__name__)
    return work.point or await _without(config, request)


async def _without(config: str, request: BackupRequest) -> PointSummary:
    with activity(config, request.vm) as work:
        arguments = (engine_of(config), request, work.progress, work.cancel)
        backup = asyncio.get_running_loop().run_in_executor(None, pipeline.run, *arguments)
        while not backup.done():
            try:
                await asyncio.wait([backup])
            except asyncio.CancelledError:
                work.cancel.cancel()
        work.point = backup.result()
    return work.point
