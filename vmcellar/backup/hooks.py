"""The commands that a job runs around the backup of one VM: before its freeze, after its thaw, and at the end.

None runs while the guest is frozen. Those of `thawed` and `after` run in any case once the backup was to begin, also
when it failed or was stopped: what `before` did is undone by them. A process that is killed runs none.
"""

from __future__ import annotations

import logging
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from vmcellar.backup.cataloguing import note_hook_failures
from vmcellar.backup.hostcommand import Ended, run_command
from vmcellar.backup.model import BackupRequest, PointSummary
from vmcellar.backup.scratch import watched
from vmcellar.errors import CancelledError, PermanentError, VmcellarError
from vmcellar.progress import CancelToken

if TYPE_CHECKING:
    from vmcellar.config.hooks import Hook, When
    from vmcellar.engine import Engine

log = logging.getLogger(__name__)

SHOWN = 500
"""Characters of a command's output, its last, that stand in errors and reports."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Hooks:
    """The hooks of one run. One thread at a time; `thawed` and `finish` never raise a VmcellarError."""

    def __init__(self, engine: Engine, request: BackupRequest) -> None:
        job = next((job for job in engine.config.backups if job.name == request.job), None)
        self._engine = engine
        self._request = request
        self._hooks = job.hooks if job else ()
        self._owed = [hook for hook in self._hooks if hook.when == "thawed"]
        self.lines: list[str] = []
        self.failures: list[str] = []
        self.point: PointSummary | None = None

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def before(self, cancel: CancelToken) -> None:
        """Run those of `before`, one after the other; PermanentError at the first that fails and must not."""
        for hook in self._of("before"):
            if not self._run(hook, cancel):
                cancel.check()
                raise PermanentError(
                    f"{self._request.vm}: not begun: {self.failures[-1]}",
                    hint="mend the command, or give it `on_failure: warn` (docs/configuration.md)",
                )

    def thawed(self, check_pressure: Callable[[], None] | None = None) -> None:
        """Run those of `thawed` that did not run yet; a failure is noted, and the backup goes on.

        The VM is held meanwhile and nothing is read: once `check_pressure` raises, the hook that runs is stopped,
        before the guest's writes fail (pitfall 11). Whoever reads next finds the same pressure, and gives up; those
        that did not begin run at the end.
        """
        if not self._owed:
            return
        token = CancelToken()
        with watched(check_pressure, token.cancel) if check_pressure else nullcontext():
            while self._owed and not token.cancelled:
                self._run(self._owed.pop(0), token)

    def finish(self, error: BaseException | None) -> None:
        """Run those of `thawed` that are still owed, and those of `after`; `error` is what ended the backup."""
        self.thawed()
        for hook in self._of("after"):
            self._run(hook, CancelToken(), error)

    def on(self, point: PointSummary) -> PointSummary:
        """The point with what the hooks did, for reports; failures that make the run red are noted in the catalog."""
        if self.failures:
            note_hook_failures(self._engine, point, self.failures)
        return replace(point, hooks=tuple(self.lines), hook_failures=tuple(self.failures))

    def _of(self, when: When) -> Iterator[Hook]:
        return (hook for hook in self._hooks if hook.when == when)

    def _run(self, hook: Hook, cancel: CancelToken, error: BaseException | None = None) -> bool:
        """Whether the run may go on."""
        where = f"hook {hook.when} in the guest" if hook.at == "guest" else f"hook {hook.when}"
        if hook.at == "guest" and self._request.start_paused and not self._guest_runs():
            self.lines.append(f"{where} `{hook.run}`: not run, as the VM is off")
            return True
        ended = self._try(hook, cancel, self._environment(hook, error))
        shown = ended.output[-SHOWN:]
        line = f"{where} `{hook.run}`: {ended.problem or 'done'} in {ended.seconds:.1f} s{_said(shown)}"
        self.lines.append(line)
        if not ended.problem:
            log.info("%s: %s", self._request.vm, line)
            return True
        log.warning("%s: %s", self._request.vm, line)
        if hook.on_failure == "warn":
            return True
        self.failures.append(f"{where} `{hook.run}`: {ended.problem}{_said(shown)}")
        return False

    def _try(self, hook: Hook, cancel: CancelToken, environment: dict[str, str]) -> Ended:
        started = time.monotonic()
        try:
            if hook.at == "guest":
                return self._in_guest(hook, cancel, environment)
            _refuse_if_anybody_may_write(self._engine)
            return run_command(hook.run, environment, hook.limit, cancel)
        except (VmcellarError, OSError) as error:
            return Ended(str(getattr(error, "message", error)), "", time.monotonic() - started)

    def _in_guest(self, hook: Hook, cancel: CancelToken, environment: dict[str, str]) -> Ended:
        from vmcellar.sources.guest_agent import Agent  # noqa: PLC0415  (libvirt only where VMs are)
        from vmcellar.sources.libvirt_connection import Connection  # noqa: PLC0415

        started = time.monotonic()
        with closing(Connection(self._engine.config.libvirt.uri)) as connection:
            ran = Agent(connection.running(self._request.vm)).run(hook.run, hook.limit, cancel, environment)
        if ran.code is None:
            return Ended(ran.output or "killed", "", time.monotonic() - started)
        return Ended(f"exit code {ran.code}" if ran.code else "", ran.output.strip(), time.monotonic() - started)

    def _guest_runs(self) -> bool:
        """False for a VM that is off, or is paused as one that was off is."""
        import libvirt  # noqa: PLC0415  (only where VMs are)

        from vmcellar.sources.libvirt_connection import Connection  # noqa: PLC0415

        with closing(Connection(self._engine.config.libvirt.uri)) as connection:
            return bool(connection.domain(self._request.vm).state()[0] == libvirt.VIR_DOMAIN_RUNNING)

    def _environment(self, hook: Hook, error: BaseException | None) -> dict[str, str]:
        """All that a command gets: nothing of this process's own, which may hold secrets."""
        values = {
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "HOME": _home() if hook.at == "host" else "/",
            "VMCELLAR_VM": self._request.vm,
            "VMCELLAR_JOB": self._request.job,
            "VMCELLAR_WHEN": hook.when,
        }
        if hook.when == "after":
            values["VMCELLAR_OUTCOME"] = _outcome(error)
            values["VMCELLAR_POINT"] = self.point.id if self.point else ""
            values["VMCELLAR_ERROR"] = " ".join(str(getattr(error, "message", error or "")).replace("\0", "").split())
        return values


@contextmanager
def hooked(engine: Engine, request: BackupRequest, cancel: CancelToken) -> Iterator[Hooks]:
    """Run the hooks around the block, which calls `thawed` and sets `point`."""
    hooks = Hooks(engine, request)
    try:
        hooks.before(cancel)
        yield hooks
    except BaseException as error:
        hooks.finish(error)
        raise
    hooks.finish(None)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    return "cancelled" if isinstance(error, CancelledError) or not isinstance(error, Exception) else "failed"


def _said(output: str) -> str:
    return f": {' | '.join(output.splitlines())}" if output else ""


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a user without an entry
        return "/"


def _refuse_if_anybody_may_write(engine: Engine) -> None:
    source = engine.config.source
    if source is not None and source.stat().st_mode & stat.S_IWOTH:
        raise PermanentError(f"not run: everybody may write {source}; `chmod o-w` it")
