"""Settling what dead runs left: `recover_host`, to be run at boot and every so often."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows.parameters import Recover
from tasks import restore as tasks
from tasks.control import engine_of
from tasks.running import TaskThreads
from tasks.runrecords import living, recorded, settle
from tasks.unbegun import settle_unbegun
from vmcellar.progress import CancelToken


@flow(name="recover-host", flow_run_name="recover {request.what}")
@recorded
async def recover_host(request: Recover) -> list[dict[str, Any]]:
    """Let the VMs of killed runs go, drop leftover landings and orphan checkpoints; says what was found.

    Flow runs of this host that the server takes for running, though their process is gone, get the state that is true;
    so do those whose process died before their flow began (`tasks.unbegun`).
    """
    state = engine_of(request.config).state
    for record in await settle(state):
        get_run_logger().info("flow run %s: %s", record.id, record.message or "its process is gone")
    for run in await settle_unbegun(living(state)):
        get_run_logger().info("flow run %s, %s: nobody works on it", run.id, run.name)
    with TaskThreads(CancelToken(), 1) as threads:
        return await threads.value(tasks.recover, request.config, request.vm, request.resume)
