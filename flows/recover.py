"""Settling what dead runs left: `recover_host`, to be run at boot and every so often."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.parameters import Recover
from tasks import restore as tasks


@flow(name="recover-host", flow_run_name="recover {request.vm}")
async def recover_host(request: Recover) -> list[dict[str, Any]]:
    """End leftover backup jobs, drop leftover landings and orphan checkpoints; says what was found."""
    return tasks.recover(request.config, request.vm)
