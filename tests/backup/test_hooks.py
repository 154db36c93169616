"""Commands around a backup: when they run, what they are told, what their failure means, and that none is left over."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

import flows.backup as flow
from flows.parameters import BackupVm
from tasks import backup as backup_tasks
from tasks import hooks as in_flow
from tasks.control import Activity
from tests.backup.world import EmptySource, make_engine
from tests.cli.conftest import quick_cost
from vmcellar.backup import hostcommand, pipeline, stages
from vmcellar.backup.hooks import Hooks
from vmcellar.backup.hostcommand import run_command
from vmcellar.backup.model import BackupRequest, PointSummary
from vmcellar.backup.report import markdown_report
from vmcellar.catalog.conditions import conditions
from vmcellar.catalog.metrics import standing
from vmcellar.config.jobs import BackupJob
from vmcellar.engine import Engine
from vmcellar.errors import CancelledError, PermanentError, TransientError
from vmcellar.progress import CancelToken

REQUEST = BackupRequest("vm", job="mine")
PATH = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    made = make_engine(tmp_path)
    yield made
    made.repository.close()


def with_hooks(engine: Engine, *hooks: dict[str, Any]) -> None:
    job = BackupJob.model_validate({"name": "mine", "hooks": list(hooks)})
    engine.config = engine.config.model_copy(update={"backups": (job,)})


def noting(note: Path, when: str, then: str = "", **more: Any) -> dict[str, Any]:
    """A hook that adds a line to the file `note`."""
    line = f'echo "$VMCELLAR_WHEN $VMCELLAR_VM $VMCELLAR_JOB $VMCELLAR_OUTCOME $VMCELLAR_POINT" >> {note}; {then}'
    return {"when": when, "run": line, **more}


def whole(note: Path) -> tuple[dict[str, Any], ...]:
    return tuple(noting(note, when) for when in ("before", "thawed", "after"))


def test_they_run_in_order_and_are_told_what_came_of_it(engine: Engine, tmp_path: Path) -> None:
    with_hooks(engine, *whole(tmp_path / "note"), {"when": "after", "run": "echo all well; echo again >&2"})
    point = pipeline.run(engine, REQUEST)
    lines = (tmp_path / "note").read_text().splitlines()
    assert lines == ["before vm mine  ", "thawed vm mine  ", f"after vm mine ok {point.id}"]
    assert (len(point.hooks), point.hook_failures) == (4, ())
    assert "all well | again" in markdown_report(point)


def test_a_backup_by_hand_runs_none(engine: Engine, tmp_path: Path) -> None:
    with_hooks(engine, *whole(tmp_path / "note"))
    pipeline.run(engine, BackupRequest("vm"))
    assert not (tmp_path / "note").exists()


def test_where_one_before_fails_nothing_begins_and_the_others_still_undo_it(engine: Engine, tmp_path: Path) -> None:
    with_hooks(engine, noting(tmp_path / "note", "before", "echo no room; exit 3"), *whole(tmp_path / "note"))
    with pytest.raises(PermanentError, match=r"vm: not begun: hook before .*exit code 3: no room"):
        pipeline.run(engine, REQUEST)
    assert isinstance(engine.source, EmptySource)
    assert not engine.source.begun
    lines = (tmp_path / "note").read_text().splitlines()
    assert lines == ["before vm mine  ", "thawed vm mine  ", "after vm mine failed "]


def test_one_that_runs_again_for_a_run_that_holds_no_vm_is_not_stopped(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hooks(engine, {"when": "thawed", "run": f"sleep 0.6; echo done >> {tmp_path}/note"})

    def away(*_: object) -> None:
        raise TransientError("the tier is away")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "commit", away)
        with pytest.raises(TransientError):
            pipeline.run(engine, REQUEST)
    point = pipeline.run(engine, REQUEST)
    assert point.hook_failures == ()
    assert (tmp_path / "note").read_text() == "done\ndone\n"


def test_a_failure_that_is_only_to_be_warned_of_stops_nothing(engine: Engine) -> None:
    with_hooks(engine, {"when": "before", "run": "exit 3", "on_failure": "warn"})
    point = pipeline.run(engine, REQUEST)
    assert (point.hook_failures, point.verified) == ((), True)
    assert "exit code 3" in point.hooks[0]


def test_while_the_vm_is_held_a_hook_is_stopped_before_scratch_space_is_full(engine: Engine, tmp_path: Path) -> None:
    with_hooks(engine, {"when": "thawed", "run": "sleep 3600"}, noting(tmp_path / "note", "thawed"))

    def full() -> None:
        raise PermanentError("scratch space is 95% full")

    hooks = Hooks(engine, REQUEST)
    hooks.thawed(full)
    assert [failure.partition(": ")[2] for failure in hooks.failures] == ["stopped on request"]
    assert not (tmp_path / "note").exists()
    hooks.finish(None)
    assert (tmp_path / "note").read_text() == "thawed vm mine  \n", "what undoes something runs in any case"


def test_a_failure_afterwards_leaves_the_point_and_makes_the_run_red(engine: Engine) -> None:
    with_hooks(engine, {"when": "after", "run": "echo still frozen; exit 1"})
    point = pipeline.run(engine, REQUEST)
    assert engine.repository.points_of("vm")[-1].id == point.id
    assert point.hook_failures == ("hook after `echo still frozen; exit 1`: exit code 1: still frozen",)
    (told,) = conditions(standing(engine.catalog), (), engine.repository.clock())
    assert told.key == "vm: hook failed", "people are told"
    assert told.text.endswith(f"has its point, but {point.hook_failures[0]}")
    with_hooks(engine)
    pipeline.run(engine, REQUEST)
    assert conditions(standing(engine.catalog), (), engine.repository.clock()) == []


def test_those_afterwards_run_when_the_backup_failed(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hooks(engine, *whole(tmp_path / "note"))

    def fail(*_: object) -> None:
        raise PermanentError("no commit")

    monkeypatch.setattr(stages, "commit", fail)
    with pytest.raises(PermanentError, match="no commit"):
        pipeline.run(engine, REQUEST)
    assert (tmp_path / "note").read_text().splitlines()[-1] == "after vm mine failed "


def test_those_afterwards_run_when_the_backup_was_stopped(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hooks(engine, *whole(tmp_path / "note"))
    cancel = CancelToken()

    def stop(*_: object) -> None:
        cancel.cancel()
        cancel.check()

    monkeypatch.setattr(stages, "commit", stop)
    with pytest.raises(CancelledError):
        pipeline.run(engine, REQUEST, cancel=cancel)
    lines = (tmp_path / "note").read_text().splitlines()
    assert lines == ["before vm mine  ", "thawed vm mine  ", "after vm mine cancelled "]


def test_a_stop_ends_one_before(engine: Engine, tmp_path: Path) -> None:
    """The command waits for a writer that never comes; the stop comes once it has begun."""
    os.mkfifo(tmp_path / "begun")
    with_hooks(
        engine, {"when": "before", "run": f"echo > {tmp_path}/begun; sleep 1000"}, noting(tmp_path / "n", "after")
    )
    cancel = CancelToken()

    def stop() -> None:
        (tmp_path / "begun").read_text()
        cancel.cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(CancelledError):
        pipeline.run(engine, REQUEST, cancel=cancel)
    thread.join()
    assert (tmp_path / "n").read_text() == "after vm mine cancelled \n"


def test_a_flow_that_is_cancelled_waits_for_those_afterwards(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_flow, "get_run_logger", lambda: logging.getLogger("test"))
    with_hooks(engine, *whole(tmp_path / "note"))

    async def body(inside: asyncio.Event) -> None:
        async with in_flow.hooked(engine, REQUEST, Activity()):
            inside.set()
            await asyncio.Event().wait()

    async def cancelled() -> None:
        inside = asyncio.Event()
        task = asyncio.create_task(body(inside))
        await asyncio.wait([task, asyncio.create_task(inside.wait())], return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert (tmp_path / "note").read_text().splitlines()[-1] == "after vm mine cancelled "


class Done:
    """The state of a task that is done."""

    def __init__(self, value: Any) -> None:
        self._value = value

    async def aresult(self) -> Any:
        return self._value


class PlainThreads:
    """Runs the code of tasks without Prefect."""

    def __init__(self, cancel: CancelToken, workers: int) -> None:
        assert workers
        self.cancel = cancel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def value(self, task: Any, *arguments: Any, after: Any = ()) -> Any:
        return await (await self.run(task, *arguments, after=after)).aresult()

    async def run(self, task: Any, *arguments: Any, after: Any = ()) -> Done:
        del after
        return Done(task.fn(*arguments))

    async def all(self, chains: Any) -> list[Any]:
        return [await chain for chain in chains]


@pytest.fixture
def plain_flow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow of one VM on `engine`, with nothing of Prefect's around it."""

    @asynccontextmanager
    async def no_progress(*_: object) -> AsyncIterator[None]:
        yield

    async def no_report(point: PointSummary) -> None:
        assert "## Hooks" in markdown_report(point)

    monkeypatch.setattr(flow, "TaskThreads", PlainThreads)
    monkeypatch.setattr(flow, "progress_artifact", no_progress)
    monkeypatch.setattr(flow, "report_artifact", no_report)
    monkeypatch.setattr(in_flow, "get_run_logger", lambda: logging.getLogger("test"))
    for module in (flow, backup_tasks):
        monkeypatch.setattr(module, "engine_of", lambda _: engine)


@pytest.mark.usefixtures("plain_flow")
def test_the_flow_runs_them_around_its_dag(engine: Engine, tmp_path: Path) -> None:
    with_hooks(engine, *whole(tmp_path / "note"))
    point = asyncio.run(flow.backup_vm.fn(BackupVm(vm="vm", job="mine")))
    lines = (tmp_path / "note").read_text().splitlines()
    assert lines == ["before vm mine  ", "thawed vm mine  ", f"after vm mine ok {point.id}"]
    assert len(point.hooks) == 3


@pytest.mark.usefixtures("plain_flow")
def test_the_flow_is_red_when_one_failed_and_the_point_is_there_all_the_same(engine: Engine) -> None:
    with_hooks(engine, {"when": "after", "run": "echo oh; exit 3"})
    with pytest.raises(PermanentError, match="is committed, but hook after `echo oh; exit 3`: exit code 3: oh"):
        asyncio.run(flow.backup_vm.fn(BackupVm(vm="vm", job="mine")))
    assert len(engine.repository.points_of("vm")) == 1


@pytest.mark.usefixtures("plain_flow")
def test_the_flow_begins_nothing_when_one_before_failed(engine: Engine) -> None:
    with_hooks(engine, {"when": "before", "run": "exit 3"})
    with pytest.raises(PermanentError, match="vm: not begun"):
        asyncio.run(flow.backup_vm.fn(BackupVm(vm="vm", job="mine")))
    assert isinstance(engine.source, EmptySource)
    assert not engine.source.begun


def test_they_get_nothing_of_our_environment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with_hooks(engine, {"when": "before", "run": "env | sort"})
    hooks = Hooks(engine, REQUEST)
    hooks.before(CancelToken())
    assert "VMCELLAR_VM=vm" in hooks.lines[0]
    assert "secret" not in hooks.lines[0]


def test_none_runs_on_the_host_while_everybody_may_write_the_configuration(engine: Engine, tmp_path: Path) -> None:
    with_hooks(engine, *whole(tmp_path / "note"))
    file = tmp_path / "vmcellar.yaml"
    file.touch()
    file.chmod(0o666)
    engine.config._source = file
    with pytest.raises(PermanentError, match="everybody may write"):
        pipeline.run(engine, REQUEST)
    assert not (tmp_path / "note").exists()


def test_at_its_limit_the_whole_group_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostcommand, "GRACE_SECONDS", 0.1)
    with alive_until_dead(tmp_path / "alive") as dead:
        line = f"exec 9<>{tmp_path}/alive; (trap '' TERM; sleep 1000) & trap '' TERM; echo begun; sleep 1000"
        ended = run_command(line, PATH, 0.3, CancelToken())
        assert ended.problem == "killed after its limit of 0 s"
        dead()


def test_what_it_leaves_running_is_killed_with_it(tmp_path: Path) -> None:
    with alive_until_dead(tmp_path / "alive") as dead:
        ended = run_command(f"exec 9<>{tmp_path}/alive; sleep 1000 & echo done", PATH, 60, CancelToken())
        assert (ended.problem, ended.output) == ("", "done")
        dead()


def test_the_last_of_much_output_is_kept_and_it_never_blocks() -> None:
    ended = run_command("head -c 3000000 /dev/zero | tr '\\0' x; echo end", PATH, 60, CancelToken())
    assert ended.problem == ""
    assert (len(ended.output), ended.output[-4:]) == (hostcommand.KEPT - 1, "xend")


def test_a_command_killed_by_a_signal_says_so_and_one_may_close_its_output() -> None:
    assert run_command("kill -9 $$", PATH, 60, CancelToken()).problem == "killed by SIGKILL"
    assert run_command("exec >&- 2>&-; exit 4", PATH, 60, CancelToken()).problem == "exit code 4"


class alive_until_dead:  # noqa: N801  (a context manager)
    """A fifo that the commands of a test hold open: it is at its end once all of them are gone."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._path = path

    def __enter__(self) -> Any:
        self._file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        return self._dead

    def _dead(self) -> None:
        poll = select.poll()
        poll.register(self._file, 0)  # hang-up is always told
        assert poll.poll(60_000), "something of the command lives on"

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
