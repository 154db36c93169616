"""What went wrong with scheduled work that is of no VM: the watch tells people of it until it goes well again.

Kept in `<state>/failures.json`, one entry for each name, replaced by rename: a crash leaves the old file or the new.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.context import FlowRunContext
from pydantic import Field, TypeAdapter, ValidationError

from vmcellar.catalog.conditions import Condition
from vmcellar.config.section import Section

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

log = logging.getLogger(__name__)

FILE = "failures.json"
TOLD = frozenset(
    {
        "recover-host",
        "upkeep-repository",
        "rebalance-tiers",
        "verify-repository",
        "verify-restores",
        "analyse-history",
        "adapt-schedules",
    }
)
"""Flows whose scheduled runs are told of when they fail; backups are told of by VM."""
SHOWN = 500


class Failure(Section):
    """One that stands: what it said, since when (seconds since the epoch), and the parameters of the run."""

    text: str
    since: float
    parameters: dict[str, Any] = Field(default_factory=dict)


_BOOK = TypeAdapter(dict[str, Failure])


@contextmanager
def told_of(state: Path, name: str, parameters: dict[str, Any] | None = None) -> Iterator[None]:
    """Note a failure of the block under `name`, and take the note back when the block ends well. The error goes on."""
    try:
        yield
    except Exception as error:
        note(state, name, str(error) or type(error).__name__, parameters or {})
        raise
    _change(state, name, None)


def note(state: Path, name: str, text: str, parameters: dict[str, Any]) -> None:
    """Note a failure that nobody else saw end."""
    shown = " ".join(text.split())[:SHOWN]
    _change(state, name, Failure(text=shown, since=time.time(), parameters=parameters))


def of_flow_run(run: FlowRun | None, name: str, state: Path) -> bool:
    """Whether a run of the flow `name` is to be told of: one of a schedule, or one with the parameters of the run whose
    failure stands, as Retry and Duplicate in the UI make it.
    """
    if run is None or name not in TOLD:
        return False
    standing = failures(state).get(name)
    return run.auto_scheduled or (standing is not None and standing.parameters == run.parameters)


@contextmanager
def told_of_this_run(state: Path) -> Iterator[None]:
    """`told_of` for the flow run that this is, where people are to be told of it."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    name = context.flow.name if context and context.flow else ""
    if run is None or not of_flow_run(run, name, state):
        yield
        return
    with told_of(state, name, run.parameters):
        yield


def failures(state: Path) -> dict[str, Failure]:
    """All that stand, by name; a file that cannot be read holds none, with a warning."""
    try:
        return _BOOK.validate_json((state / FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        log.warning("%s cannot be read, and is made anew: %s", state / FILE, type(error).__name__)
        return {}


def failed_work(state: Path) -> list[Condition]:
    """The same as conditions."""
    return [Condition(f"{name} failed", "critical", f"{name}: {each.text}") for name, each in failures(state).items()]


def _change(state: Path, name: str, failure: Failure | None) -> None:
    """Best effort: no work fails, or fails otherwise, because it could not be noted."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open((state / FILE).with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        log.warning("that %s failed is not noted: %s", name, error)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        book = failures(state)
        if failure is not None:
            book[name] = failure
        elif book.pop(name, None) is None:
            return
        with suppress(OSError):
            _write(state / FILE, {key: each.model_dump(mode="json") for key, each in book.items()})
    finally:
        os.close(lock)


def _write(path: Path, book: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump(book, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
