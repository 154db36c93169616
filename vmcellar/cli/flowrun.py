"""Runs the backup flow in this process, quietly, and stops it cleanly on a signal."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.outcome import Outcome
from vmcellar.cli.output import note
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import CancelledError, TransientError, VmcellarError

if TYPE_CHECKING:
    from vmcellar.backup.model import PointSummary
    from vmcellar.progress import ProgressSink

HEALTH_SECONDS = 3.0
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
_CONSOLE = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
"""Prefect's words and tracebacks on a terminal are for developers; `--verbose` keeps them. Its server gets all of them.

What is set in the environment already stays.
"""


def prefect_answers() -> bool:
    """Whether the flow can run. A backup never waits for a server that is down: it is done without, and said so."""
    if importlib.util.find_spec("prefect") is None:
        note("note: Prefect is not installed: backing up without a run record or UI (pip install prefect)")
        return False
    url = os.environ.get("PREFECT_API_URL", "")
    if not url or _healthy(url):
        return True
    note(f"note: the Prefect server at {url} does not answer: backing up without a run record")
    return False


def _healthy(url: str) -> bool:
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=HEALTH_SECONDS):  # noqa: S310 (checked above)
            return True
    except urllib.error.HTTPError:
        return True  # something answers, and may want credentials: let Prefect say
    except (urllib.error.URLError, OSError):
        return False


def run_flow(path: Path, names: Sequence[str], job: str, *, full: bool, verbose: bool) -> Outcome:
    """Run `flows.backup.backup_job`, or for one named VM `backup_vm` alone, which saves a flow run (0.2 s).

    Errors come back in the outcome, CancelledError when a signal stopped it.
    """
    for name, value in (_QUIET if verbose else {**_QUIET, **_CONSOLE}).items():
        os.environ.setdefault(name, value)
    from flows.backup import backup_job, backup_vm
    from flows.parameters import BackupJob, BackupVm

    async def flow() -> list[PointSummary]:
        if len(names) == 1 and not job:
            return [await backup_vm(BackupVm(config=str(path), vm=names[0], mode="full" if full else "auto"))]
        return await backup_job(BackupJob(config=str(path), vms=tuple(names), job=job, full=full))

    try:
        with progress_bars() as progress:
            return Outcome(points=_run(flow, progress))
    except CancelledError:
        raise
    except VmcellarError as error:
        return Outcome(failures=[error])
    except Exception as error:
        if not _is_of_prefect(error):
            raise
        return Outcome(failures=[_prefect_failed(error)])


def _is_of_prefect(error: Exception) -> bool:
    """Whether Prefect, its HTTP client or its server failed, rather than our own code."""
    return type(error).__module__.partition(".")[0] in ("prefect", "httpx", "httpcore") or "Prefect" in str(error)


def _prefect_failed(error: Exception) -> VmcellarError:
    return TransientError(
        f"Prefect failed: {str(error) or type(error).__name__}",
        hint="`vmcellar list` shows whether the point was written all the same; if not, repair Prefect's server, "
        "or unset PREFECT_API_URL, and run the backup again",
    )


def _run(flow: Callable[[], Awaitable[list[PointSummary]]], progress: ProgressSink) -> list[PointSummary]:
    from tasks.control import watched

    async def stoppable() -> list[PointSummary]:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        assert task is not None  # noqa: S101  (inside of a coroutine there is one)
        with cancel_on_signals(lambda: loop.call_soon_threadsafe(task.cancel)):
            return await flow()

    try:
        with watched(progress):
            return asyncio.run(stoppable())
    except BaseException as stop:
        if isinstance(stop, Exception):
            raise
        # A signal, whoever caught it first: asyncio's CancelledError, KeyboardInterrupt or Prefect's TerminationSignal.
        raise CancelledError("stopped on request", hint="the VM is let go; run the backup again") from stop
