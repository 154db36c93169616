"""Which flow runs this host works on: none stays `Running` for ever when its process dies or its server is lost.

A flow run has a record in `<state>/flow-runs`, on which its process holds a lock: the kernel drops it when the process
ends, however it ends. At its end the record gets what came of it. `settle` tells the server of runs whose process is
gone, and removes the records of all that have ended.
"""

from __future__ import annotations

import fcntl
import functools
import inspect
import json
import logging
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import UUID

from prefect import State, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Crashed, Failed

from tasks.failures import TOLD, note, told_of_this_run
from tasks.patience import is_process_of, leave_when_lost
from vmcellar.backup.model import PointSummary
from vmcellar.config import find_config, load_config
from vmcellar.errors import VmcellarError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

log = logging.getLogger(__name__)


class WithConfig(Protocol):
    """The parameters of a flow."""

    @property
    def config(self) -> str:
        """The configuration file; empty for the usual one."""
        ...


P = TypeVar("P", bound=WithConfig)
R = TypeVar("R")
SUFFIX = ".json"
_UNDER_WAY = (StateType.RUNNING, StateType.CANCELLING)


@dataclass(frozen=True, slots=True)
class Record:
    """One flow run; `end` is empty until its work is over, then "completed" or "failed". `count` tells apart the times
    that Prefect began it, as with Retry in the UI.
    """

    id: str
    url: str
    count: int
    end: str = ""
    message: str = ""


def recorded(body: Callable[[P], Coroutine[Any, Any, R]]) -> Callable[[P], Coroutine[Any, Any, R]]:
    """A flow's function that keeps a record while it runs under Prefect. Put it below `@flow`."""

    @functools.wraps(body)
    async def run(request: P) -> R:
        kept = _begin(request.config)
        if kept is None:
            return await body(request)
        try:
            with told_of_this_run(kept.state):
                result = await body(request)
        except Exception as error:
            kept.end("failed", str(error) or type(error).__name__)
            raise
        kept.end("completed", _said(result))
        return result

    # Prefect makes the form out of the signature, and would look for the names in it here, not where the flow is.
    run.__signature__ = inspect.signature(body, eval_str=True)  # type: ignore[attr-defined]  # typeshed has it not
    return run


def folder_of(state: Path) -> Path:
    """Where the records of a state directory lie."""
    return state / "flow-runs"


def living(state: Path) -> set[str]:
    """The ids of flow runs whose process lives."""
    return {path.stem for path in folder_of(state).glob(f"*{SUFFIX}") if _is_held(path)}


async def settle(state: Path) -> list[Record]:
    """Tell the server what became of runs whose process is gone, and forget all that have ended; those that were told.

    Runs of another server are left alone. Raises what Prefect's client raises when the server is away.
    """
    dead = [path for path in folder_of(state).glob(f"*{SUFFIX}") if not _is_held(path)]
    told = []
    if not dead:
        return []
    async with get_client() as client:
        for path in dead:
            record = _read(path)
            if record is not None and record.url != _url():
                continue
            if record is not None and await _tell(client, record, state):
                log.warning("flow run %s: its process is gone; the server is told", record.id)
                told.append(record)
            path.unlink(missing_ok=True)
    return told


async def _tell(client: PrefectClient, record: Record, state: Path) -> bool:
    try:
        run = await client.read_flow_run(UUID(record.id))
    except ObjectNotFound:
        return False
    if run.state is None or run.state.type not in _untrue(record) or run.run_count != record.count:
        return False
    await client.set_flow_run_state(run.id, (true := _state(record, run.state.type)), force=True)
    if true.type == StateType.CRASHED and run.auto_scheduled:
        name = (await client.read_flow(run.flow_id)).name
        if name in TOLD:
            note(state, name, str(true.message), run.parameters)
    only = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    for task in await client.read_task_runs(flow_run_filter=only):
        if task.state is not None and not task.state.is_final():
            await client.set_task_run_state(task.id, Crashed(message="its process is gone"), force=True)
    return True


def _untrue(record: Record) -> tuple[StateType, ...]:
    """The states that a run without a process cannot have. A worker calls a run crashed whose process ended with an
    error, also where the work was over and a server that is there for others did not take its last words.
    """
    return (*_UNDER_WAY, StateType.CRASHED) if record.end else _UNDER_WAY


def _state(record: Record, now: StateType) -> State[Any]:
    late = "the server was not there to be told in time"
    if record.end == "completed":
        return Completed(message=f"{record.message} ({late})")
    if record.end == "failed":
        return Failed(message=f"{record.message} ({late})")
    if now == StateType.CANCELLING:
        return Cancelled(message="its process is gone")
    return Crashed(message="its process is gone, and did not say why: killed, or the host went down")


class _Kept:
    """The record of a run of this process; the lock lasts as long as the process."""

    def __init__(self, folder: Path, record: Record) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state = folder.parent
        self._record = record
        self._path = folder / f"{record.id}{SUFFIX}"
        self._file = _write(self._path, record)

    def end(self, end: str, message: str) -> None:
        """The work is over; from now on only Prefect is waited for, if this process is there for this run alone."""
        done = replace(self._record, end=end, message=message)
        with suppress(OSError):  # without it the run is called crashed, should the server not be told
            before, self._file = self._file, _write(self._path, done)
            os.close(before)
        if is_process_of(UUID(done.id)):
            leave_when_lost(0 if end == "completed" else 1)


def _begin(config: str) -> _Kept | None:
    """None for a run without a server, and where the record cannot be written: no backup fails for that."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not _url():
        return None
    try:
        state = load_config(find_config(Path(config) if config else None)).state
        run = context.flow_run
        return _Kept(folder_of(state), Record(str(run.id), _url(), run.run_count))
    except (OSError, VmcellarError) as error:
        log.warning("flow run %s has no record on this host: %s", context.flow_run.id, error)
        return None


def _write(path: Path, record: Record) -> int:
    """The descriptor of the new file, locked before it has the name by which others find it."""
    new = path.with_suffix(".new")
    file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.write(file, json.dumps(asdict(record)).encode())
    os.fsync(file)
    new.replace(path)
    return file


def _is_held(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _read(path: Path) -> Record | None:
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _url() -> str:
    return PREFECT_API_URL.value() or ""


def _said(result: object) -> str:
    points = [each for each in (result if isinstance(result, list) else [result]) if isinstance(each, PointSummary)]
    return ", ".join(f"{point.vm}: point {point.id}" for point in points) or "done"
