"""`vmcellar drain`: empty a host before it goes down."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.onserver import on_server
from vmcellar.cli.output import note
from vmcellar.cli.session import PANEL_WORK, ConfigOption, read_config
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import CancelledError, PermanentError, TransientError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from vmcellar.progress import CancelToken

LOCAL_SERVER = "http://127.0.0.1:4200/api"
POLL_SECONDS = 2.0
SERVER_SECONDS = 120


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_WORK)(drain)


def drain(
    ctx: typer.Context,
    wait: Annotated[
        str, typer.Option(metavar="TIME", help="How long what runs may go on; then exit 1. 0s: only look.")
    ] = "4h",
    end: Annotated[bool, typer.Option("--end", help="The host takes work again: undo what a drain paused.")] = False,
    host: Annotated[str, typer.Option(metavar="NAME", help="As given to `vmcellar deploy`.")] = "",
    config: ConfigOption = None,
) -> None:
    """Let this host take no new work, wait for what runs on it, say when it is safe to shut down.

    Pauses the queue of the host's worker, or the deployments that `vmcellar up` serves, on the server that
    $PREFECT_API_URL names. Ctrl-C stops the waiting, not the work; the host stays drained until `drain --end`.
    """
    from tasks.server import answers

    state, seconds = read_config(ctx, config).state, _seconds(wait)
    url = os.environ.setdefault("PREFECT_API_URL", LOCAL_SERVER)
    if end:
        _end(state, url)
        return
    if not answers(url):
        raise PermanentError(
            f"the Prefect server at {url} does not answer: nothing was paused",
            hint="start it, or set PREFECT_API_URL; `vmcellar locks` shows which VMs are being worked on",
        )
    where = _pause(state, host or socket.gethostname())
    with cancel_on_signals() as cancel:
        _wait(state, where, seconds, cancel)
    note("nothing runs here any more: it is safe to shut this host down. Afterwards: vmcellar drain --end")


def _pause(state: Path, host: str) -> str:
    from deployments import draining

    done = on_server(draining.pause(state, host))
    note(f"drained: {len(done.queues)} queues and {len(done.deployments)} deployments of {done.where} are paused")
    return str(done.where)


def _end(state: Path, url: str) -> None:
    from deployments.drained import read
    from tasks.server import answers

    if read(state) is None:
        note("this host was not drained")
        return
    end = time.monotonic() + SERVER_SECONDS
    while not answers(url):  # at boot it begins beside us
        if time.monotonic() > end:
            raise PermanentError(
                f"the Prefect server at {url} does not answer: this host stays drained",
                hint="start it, or set PREFECT_API_URL; then `vmcellar drain --end`",
            )
        time.sleep(POLL_SECONDS)
    from deployments import draining

    on_server(draining.resume(state))
    note("this host takes work again")


def _wait(state: Path, where: str, seconds: float, cancel: CancelToken) -> None:
    """Return when nothing runs; TransientError when the time is over, CancelledError on a signal."""
    end, told = time.monotonic() + seconds, ""
    while what := _at_work(state, where):
        if what != told:
            note(f"still at work: {what}")
            told = what
        if time.monotonic() >= end:
            raise TransientError(
                f"not safe yet: {what}",
                hint="wait on with `vmcellar drain`; SIGTERM to the service cancels runs and lets their VMs go",
            )
        time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
        if cancel.cancelled:
            raise CancelledError("no longer waiting; this host stays drained", hint="`vmcellar drain --end` undoes it")


def _at_work(state: Path, where: str) -> str:
    """What goes on here: flow runs, VMs that a process holds, VMs that run from the repository."""
    from deployments import draining
    from vmcellar.cli.hostlocks import held_locks
    from vmcellar.restore.boot_journal import all_boots

    names = [f"run {name}" for name in on_server(draining.running(where, state))]
    names += [f"VM {lock.vm} (process {lock.pid})" for lock in held_locks(state)]
    names += [f"VM {boot.name} runs from the repository" for boot in all_boots(state)]
    return ", ".join(names)


def _seconds(text: str) -> float:
    from vmcellar.config.units import parse_duration

    try:
        return 0.0 if text in {"0", "0s"} else float(parse_duration(text))
    except ValueError as error:
        raise UsageError(f"--wait {text}: {error}", hint="such as 90s, 30m or 4h") from None
