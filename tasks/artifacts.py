"""What people see of a run in the UI: a progress bar with rate and time left, and a report. Keys are
`[a-z0-9-]`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import acreate_markdown_artifact, create_progress_artifact, update_progress_artifact

from tasks.control import Activity
from vmcellar.backup.model import PointSummary
from vmcellar.backup.report import eta, markdown_report

UPDATE_SECONDS = 5.0
"""How often the progress bar moves: each move is a request to the server."""


def artifact_key(prefix: str, vm: str) -> str:
    """A valid artifact key for a VM: letters, digits and dashes."""
    return f"{prefix}-{re.sub('[^a-z0-9]+', '-', vm.lower()).strip('-') or 'vm'}"


@contextmanager
def progress_artifact(vm: str, activity: Activity) -> Iterator[None]:
    """Show how far the reading is for as long as the block lasts; small runs, which end at once, get none."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(vm, activity, stop), name=f"progress-{vm}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


async def report_artifact(point: PointSummary) -> None:
    """Publish the report of a committed point."""
    await acreate_markdown_artifact(
        key=artifact_key("backup", point.vm), markdown=markdown_report(point), description=f"{point.vm}: {point.id}"
    )


def _watch(vm: str, activity: Activity, stop: threading.Event) -> None:
    shown: UUID | None = None
    while not stop.wait(UPDATE_SECONDS):
        shown = _show(vm, activity, shown)
    if shown is not None:
        _show(vm, activity, shown)


def _show(vm: str, activity: Activity, shown: UUID | None) -> UUID | None:
    percent = 100.0 * activity.done("export") / activity.total if activity.total else 100.0
    text = f"{vm}: {eta(activity.done('export'), activity.total, activity.started)}"
    if shown is None:
        made = create_progress_artifact(progress=percent, key=artifact_key("progress", vm), description=text)
        return made if isinstance(made, UUID) else None
    update_progress_artifact(artifact_id=shown, progress=percent, description=text)
    return shown
