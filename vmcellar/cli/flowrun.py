"""Runs the backup flow in this process, quietly, and stops it cleanly on a signal."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.leaving import hurry
from vmcellar.cli.output import note
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import CancelledError, VmcellarError

if TYPE_CHECKING:
    from vmcellar.backup.model import Mode, PointSummary

LOOK_SECONDS = 1.0
PATIENCE = 8.0
"""Prefect itself would try for a minute per request, and for ten seconds per event when the process ends."""
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
_CONSOLE = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL"}
"""Prefect's words and tracebacks on a terminal are for developers; `--verbose` keeps them. Its server gets all of them.

What is set in the environment already stays.
"""


def prefect_answers() -> bool:
    """Whether the flow can run. A backup never waits for a server that is down: it is done without, and said so."""
    if importlib.util.find_spec("prefect") is None:
        note("note: Prefect is not installed: backing up without a run record or UI (pip install prefect)")
        return False
    from tasks.server import answers

    url = os.environ.get("PREFECT_API_URL", "")
    if not url or answers(url):
        return True
    note(f"note: the Prefect server at {url} does not answer: backing up without a run record")
    return False


@dataclass(frozen=True, slots=True)
class FlowEnd:
    """What the flow's work came to, by VM; `lost` says why Prefect did not take all of it, empty if it did.

    Without `lost`, `failure` is the error that the whole flow ended with, if it did.
    """

    points: dict[str, PointSummary]
    failures: dict[str, VmcellarError]
    failure: VmcellarError | None = None
    lost: str = ""


def run_flow(
    path: Path,
    names: Sequence[str],
    job: str,
    *,
    full: bool,
    start_paused: bool,
    keep_paths: bool = False,
    verbose: bool,
) -> FlowEnd:
    """Run `flows.backup.backup_job`, or for one named VM `backup_vm` alone, which saves a flow run (0.2 s).

    CancelledError when a signal stopped it. A server that is lost is waited for `PATIENCE` seconds once nothing is left
    to do but to tell it; then the flow is left behind, and the process will end without it (`vmcellar.cli.leaving`).
    """
    for name, value in (_QUIET if verbose else {**_QUIET, **_CONSOLE}).items():
        os.environ.setdefault(name, value)
    logging.raiseExceptions = verbose  # Prefect's log worker asks it whether to print that it lost its server
    from flows.backup import backup_job, backup_vm
    from flows.parameters import BackupJob, BackupVm
    from tasks.control import watched, witnessed
    from tasks.lost import is_of_prefect

    async def flow() -> object:
        if len(names) == 1 and not job:
            mode: Mode = "full" if full else "auto"
            return await backup_vm(BackupVm(config=str(path), vm=names[0], mode=mode, start_paused=start_paused))
        options: dict[str, Any] = {"full": full, "start_paused": start_paused, "keep_paths": keep_paths}
        wanted = BackupJob(config=str(path), vms=tuple(names), job=job, **options)
        return await backup_job(wanted)

    with progress_bars() as progress, watched(progress), witnessed() as ended:
        thread = _FlowThread(flow)
        with cancel_on_signals(thread.stop) as cancel:
            answered = thread.wait_with(os.environ.get("PREFECT_API_URL", ""))
    if not answered:
        hurry()
    if cancel.cancelled or (thread.error is not None and not isinstance(thread.error, Exception)):
        raise CancelledError("stopped on request", hint="the VM is let go; run the backup again") from thread.error
    points = {vm: work.point for vm, work in ended.items() if work.point is not None}
    failures = {vm: error for vm, work in ended.items() if isinstance(error := work.failure, VmcellarError)}
    error = thread.error
    if not answered and (thread.is_alive() or error is not None):
        return FlowEnd(points, failures, lost="its server does not answer any more")
    if error is None or isinstance(error, VmcellarError):
        return FlowEnd(points, failures, error)
    if not is_of_prefect(error):
        raise error
    return FlowEnd(points, failures, lost=str(error) or type(error).__name__)


class _FlowThread(threading.Thread):
    """Runs a flow in an event loop of its own, so that the main thread can leave it behind."""

    def __init__(self, flow: Callable[[], Awaitable[object]]) -> None:
        super().__init__(name="flow", daemon=True)
        self.error: BaseException | None = None
        self._flow = flow
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[object] | None = None
        self._stopped = False
        self.start()

    def run(self) -> None:
        """The flow, to its end."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._stoppable())
        except BaseException as error:
            self.error = error

    async def _stoppable(self) -> None:
        self._task = asyncio.current_task()
        if self._stopped:
            raise asyncio.CancelledError
        await self._flow()

    def stop(self) -> None:
        """Cancel the flow; from a signal handler or any thread."""
        self._stopped = True
        if self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def wait_with(self, url: str) -> bool:
        """Wait for the end; False when the server at `url` is lost, before or after it."""
        from tasks.control import working
        from tasks.server import answers

        silent: float | None = None
        while True:
            self.join(LOOK_SECONDS)
            if not url or working() or answers(url):
                silent = None
            elif not self.is_alive():
                return False
            elif silent is None:
                silent = time.monotonic()
            elif time.monotonic() - silent > PATIENCE:
                self.stop()  # should the server come back, nothing more may begin
                return False
            if not self.is_alive():
                return True
