"""Work pools and queues: one process pool for all hosts, a queue per host, a worker of each host on its own queue."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound


def options(pool: str, host: str, config: Path) -> dict[str, Any]:
    """What Prefect has to know of each deployment of a host: who runs it, and with which configuration."""
    return {
        "work_pool_name": pool,
        "work_queue_name": host,
        "job_variables": {"env": {"VMCELLAR_CONFIG": str(config)}},
    }


async def ensure(pool: str, host: str) -> None:
    """Make the pool and the host's queue, where they are not there."""
    async with get_client() as client:
        with suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        try:
            await client.read_work_queue_by_name(host, pool)
        except ObjectNotFound:
            await client.create_work_queue(host, work_pool_name=pool)
