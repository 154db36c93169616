"""Bringing a point back: `restore_vm`."""

from __future__ import annotations

from prefect import flow

from flows.parameters import RestoreVm
from tasks import restore as tasks
from tasks.artifacts import restore_artifact
from tasks.control import activity
from tasks.running import TaskThreads
from tasks.runrecords import recorded
from vmcellar.errors import IntegrityError
from vmcellar.restore.bring_back import Done


@flow(name="restore-vm", flow_run_name="restore {request.point}")
@recorded
async def restore_vm(request: RestoreVm) -> Done:
    """Restore a point's disks into a folder, and define the VM where asked for. Red when anything was lost."""
    wanted = tasks.restore_wanted(request.directory, request.format, request.disks, request.best_effort, request.define)
    with activity(request.config, request.point) as work, TaskThreads(work.cancel, 1) as threads:
        done = await threads.value(tasks.restore, request.config, request.point, wanted)
    await restore_artifact(done.report, done.defined.name if done.defined else "")
    if done.report.lost:
        raise IntegrityError(
            f"{done.report.vm}: point {done.report.point} is restored but for {len(done.report.lost)} lost ranges",
            hint=f"see {request.directory}/lost-ranges.json",
        )
    return done
