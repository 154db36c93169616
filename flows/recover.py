"""Settling what dead runs left: `recover_host`, to be run at boot and every so often."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.parameters import Recover
from tasks import restore as tasks
from tasks.running import TaskThreads
from vmcellar.progress import CancelToken


@flow(name="recover-host", flow_run_name="recover {request.what}")
async def recover_host(request: Recover) -> list[dict[str, Any]]:
    """Let the VMs of killed runs go, drop leftover landings and orphan checkpoints; says what was found."""
    with TaskThreads(CancelToken(), 1) as threads:
        return await threads.value(tasks.recover, request.config, request.vm, request.resume)
