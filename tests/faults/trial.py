"""Runs a command of a scenario in forked processes, and has it die or fail at each durable step in turn.

The process that forks never has threads and never opens a repository itself, so a fork is as good as a new process, and
takes a millisecond where a new interpreter takes a second.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.powercut import Journal, forget, inodes
from tests.faults.steps import ERRORS, Act, Steps, come_back, failing_at, killed_at, vanishing_at
from vmcellar.errors import VmcellarError

KILL = "kill"
VANISH = "vanish"
POWER_CUT = "power-cut"


@dataclass(frozen=True)
class Scenario:
    """One command. `prepare` builds what is there before it; `act` is the command, as its own process runs it.

    `settled` asserts what must hold however far it came; `again` runs the command again, as a user would; `finished`
    asserts that it is done.
    """

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    settled: Callable[[Path], None]
    again: Callable[[Path], None]
    finished: Callable[[Path], None]


@dataclass
class Outcome:
    """How many steps there were, how often the command died or failed, and the calls at which it did."""

    name: str
    mode: str
    steps: int = 0
    tried: int = 0
    died: int = 0
    calls: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        calls = ", ".join(f"{name} {count}" for name, count in sorted(self.calls.items()))
        if not self.steps:
            return f"{self.name}: {self.mode}: {self.tried} tried, {self.died} failed"
        return f"{self.name}: {self.mode}: {self.tried} of {self.steps} steps, {self.died} fired ({calls})"


class TrialError(AssertionError):
    """What must hold did not, after a death or failure at a named step."""


def run(scenario: Scenario, folder: Path, mode: str = KILL, every: int = 1) -> Outcome:
    """Try each `every`-th step; TrialError at the first that does harm. `folder` is empty and is used up."""
    trial, kept, report = folder / "trial", folder / "kept", folder / "report"
    trial.mkdir()
    in_child(lambda: scenario.prepare(trial), f"{scenario.name}: prepare")
    shutil.copytree(trial, kept)
    in_child(lambda: scenario.settled(trial), f"{scenario.name}: before anything")
    names = _count(scenario, trial, report)
    in_child(lambda: scenario.finished(trial), f"{scenario.name}: undisturbed")
    outcome = Outcome(scenario.name, mode, len(names))
    for step in _steps(names, mode, every):
        shutil.rmtree(trial)
        shutil.copytree(kept, trial)
        where = (
            f"{scenario.name}: {mode} {'before' if step % 2 else 'after'} step {step}, {[*names, 'the end'][step - 1]}"
        )
        outcome.tried += 1
        fired = _disturb(scenario, trial, mode, step, where)
        if fired:
            outcome.died += 1
            outcome.calls[[*names, "end"][step - 1].split()[0]] += 1
        go_on(scenario, trial, where, failed=fired)
    return outcome


def go_on(scenario: Scenario, trial: Path, where: str, *, failed: bool) -> None:
    """What must hold afterwards; a command that said it was done must be done without another one."""
    in_child(lambda: scenario.settled(trial), where)
    if failed:
        in_child(lambda: scenario.again(trial), f"{where}: again")
    in_child(lambda: scenario.finished(trial), f"{where}: finished")


def _steps(names: list[str], mode: str, every: int) -> Iterator[int]:
    """Failing calls fail before anything happens: odd steps. A power cut may also come when the command has ended."""
    yield from range(1, len(names) + 1, every if mode in (KILL, POWER_CUT) else 2 * every)
    if mode == POWER_CUT:
        yield len(names) + 1


def _count(scenario: Scenario, trial: Path, report: Path) -> list[str]:
    def work() -> None:
        steps = Steps()
        steps.install()
        scenario.act(trial)
        report.write_text("\n".join(steps.names))

    in_child(work, f"{scenario.name}: count")
    names = report.read_text().splitlines()
    assert names, f"{scenario.name} does nothing durable"
    return names


def _disturb(scenario: Scenario, trial: Path, mode: str, step: int, where: str) -> bool:
    """Whether the command died, or told of an error of ours."""
    if mode == KILL:
        return _killed(lambda: _act(scenario, trial, killed_at(step)), where)
    if mode == POWER_CUT:
        return _power_cut(scenario, trial, step, where)
    if mode == VANISH:
        failed = fails(lambda: _act(scenario, trial, vanishing_at(step, trial / "hot")), trial, where)
        come_back(trial / "hot")
        return failed
    code, _, once = mode.partition("-")
    act = failing_at(step, ERRORS[code], from_then_on=once != "once")
    return fails(lambda: _act(scenario, trial, act), trial, where)


def fails(work: Callable[[], None], trial: Path, where: str) -> bool:
    """Whether `work`, in a process of its own, raises what the command line prints with exit code 1; else no error."""
    note = trial.with_name("failed")
    note.unlink(missing_ok=True)

    def noting() -> None:
        try:
            work()
        except (VmcellarError, OSError) as error:
            if not str(error):
                raise AssertionError(f"an error without words: {error!r}") from error
            note.write_text(str(error))

    in_child(noting, where)
    return note.exists()


def _act(scenario: Scenario, trial: Path, act: Act, journal: Path | None = None) -> None:
    Steps(act, Journal(journal) if journal else None).install()
    scenario.act(trial)


def _power_cut(scenario: Scenario, trial: Path, step: int, where: str) -> bool:
    """Killed, if it has not ended, and all is gone that was not durable, and what the hypervisor held."""
    journal = trial.with_name("journal")
    shutil.rmtree(journal, ignore_errors=True)
    journal.mkdir()
    durable = inodes(trial)
    died = _killed(lambda: _act(scenario, trial, killed_at(step), journal), where)
    held = inodes(trial / "vms")  # what the hypervisor keeps is not ours to sync
    forget(trial, journal, durable | held, lambda path: "cache" in path.relative_to(trial).parts[:-1])
    for path in (trial / "vms").glob("held-*"):
        path.unlink()
    return died


def _killed(work: Callable[[], None], where: str) -> bool:
    status = _forked(work, where)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise TrialError(f"{where}: it failed before it was killed")
    return False


def in_child(work: Callable[[], None], where: str) -> None:
    """Do `work` in a process of its own; TrialError when it raises, and what that was on stderr."""
    if _forked(work, where):
        raise TrialError(where)


def _forked(work: Callable[[], None], where: str) -> int:
    """The wait status of a process that did `work`; what it raised is on stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            sys.stderr.write(f"{where}\n{traceback.format_exc()}\n")
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]
