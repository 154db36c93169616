"""Serve all flows on this host: `python -m deployments.serve`. Needs PREFECT_API_URL and a running server.

Deployments stay active when it stops (`pause_on_shutdown=False`), and it stops cleanly on SIGTERM and SIGINT.
"""

from __future__ import annotations

from typing import Any

from prefect import serve

from flows.backup import backup_job, backup_vm
from flows.parameters import BackupJob, BackupVm, Recover, RestoreVm, VerifyRepository
from flows.recover import recover_host
from flows.restore import restore_vm
from flows.verify import verify_repository

TAGS = ["vmcellar"]


def deployments() -> list[Any]:
    """One deployment per flow, without schedules; parameters are what the UI's form starts from."""
    return [
        backup_vm.to_deployment("here", tags=TAGS, description=BackupVm.__doc__),
        backup_job.to_deployment("here", tags=TAGS, description=BackupJob.__doc__),
        restore_vm.to_deployment("here", tags=TAGS, description=RestoreVm.__doc__),
        verify_repository.to_deployment("here", tags=TAGS, description=VerifyRepository.__doc__),
        recover_host.to_deployment("here", tags=TAGS, description=Recover.__doc__),
    ]


def main() -> None:
    """Serve until stopped."""
    serve(*deployments(), pause_on_shutdown=False)


if __name__ == "__main__":
    main()
