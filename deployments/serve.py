"""Serve all flows on this host: `python -m deployments.serve`. Needs PREFECT_API_URL and a running server.

Deployments stay active when it stops (`pause_on_shutdown=False`), and it stops cleanly on SIGTERM and SIGINT: runs are
cancelled, their VMs let go.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow, serve
from prefect.types.entrypoint import EntrypointType

from flows.backup import backup_job, backup_vm
from flows.lifecycle import rebalance_tiers
from flows.recover import recover_host
from flows.restore import restore_vm
from flows.verify import verify_repository

NAME = "here"
TAGS = ["vmcellar"]


def deployments() -> list[Any]:
    """One deployment per flow, without schedules. Entry points are dotted names: a path would load the module a second
    time under another name, and mean another file from another working directory.
    """
    flows: list[Flow[..., Any]] = [backup_vm, backup_job, restore_vm, verify_repository, rebalance_tiers, recover_host]
    return [flow.to_deployment(NAME, tags=TAGS, entrypoint_type=EntrypointType.MODULE_PATH) for flow in flows]


def main() -> None:
    """Serve until stopped."""
    serve(*deployments(), pause_on_shutdown=False)


if __name__ == "__main__":
    main()
