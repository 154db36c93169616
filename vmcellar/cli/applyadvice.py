"""`vmcellar advise --apply` and `--undo`: advice becomes schedules, with a trail of what was changed and why."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmcellar.cli.output import note
from vmcellar.errors import UsageError
from vmcellar.policy import timetable
from vmcellar.policy.timetable import Advised

if TYPE_CHECKING:
    from vmcellar.analysis.advise import Advice
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.config.jobs import BackupJob
    from vmcellar.config.model import Config

JobOf = Callable[[str], "BackupJob | None"]


def advised_of(advice: Advice, job_of: JobOf, now: str) -> tuple[list[Advised], list[str]]:
    """The schedules that the advice comes to, and the VMs that no job with a schedule has: it cannot be applied there.

    VMs that begin at the same times share a schedule. Those that stay as they are keep the job's own.
    """
    together: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    left_out = []
    for change in advice.changes:
        job = job_of(change.vm)
        if job is None or job.schedule is None:
            left_out.append(change.vm)
        elif tuple(change.before) != tuple(change.after):
            together.setdefault((job.name, tuple(change.after)), []).append(change.vm)
    found = [
        Advised(job=job, vms=tuple(sorted(vms)), schedule=schedule, why="vmcellar advise", time=now)
        for (job, starts), vms in sorted(together.items())
        for schedule in timetable.daily(starts)
    ]
    return found, left_out


def apply(config: Config, catalog: Catalog, advice: Advice, job_of: JobOf, where: str) -> None:
    """Make the advice the schedules of this host's jobs; note it in the catalog; tell the Prefect server, if any.

    UsageError when there is nothing to apply. Windows hold as before, and `--undo` takes it back.
    """
    advised, left_out = advised_of(advice, job_of, datetime.now(UTC).isoformat(timespec="seconds"))
    if left_out:
        note(f"left as they are, as no job with a schedule has them: {', '.join(left_out)}")
    if not advised:
        raise UsageError("nothing to apply: every VM stays as it is", hint="the table says why")
    before = timetable.read_advised(config.state)
    timetable.apply_advised(config.state, advised)
    reasons = {change.vm: change.why for change in advice.changes}
    _trail(catalog, before, advised, lambda vm: reasons.get(vm, ""))
    note(f"applied to {len({vm for each in advised for vm in each.vms})} VMs; `vmcellar advise --undo` takes it back")
    _tell(config, where)


def undo(config: Config, catalog: Catalog, where: str) -> None:
    """Bring back the schedules before the last `apply`."""
    before = timetable.read_advised(config.state)
    now = timetable.undo_advised(config.state)
    _trail(catalog, before, now, lambda _: "undone")
    note("the schedules before the last advice hold again")
    _tell(config, where)


def _trail(catalog: Catalog, before: Sequence[Advised], after: Sequence[Advised], reason: Callable[[str], str]) -> None:
    from vmcellar.catalog.models import ScheduleChange

    was, will = _words(before), _words(after)
    now = datetime.now(UTC).timestamp()
    catalog.add(
        ScheduleChange(
            id=uuid.uuid4().hex,
            repository=catalog.repository,
            vm=vm,
            time=now,
            before=was.get(vm, "the job's own"),
            after=will.get(vm, "the job's own"),
            reason=reason(vm),
            by="vmcellar advise",
            applied=True,
        )
        for vm in sorted(was.keys() | will.keys())
        if was.get(vm) != will.get(vm)
    )


def _words(advised: Sequence[Advised]) -> dict[str, str]:
    words: dict[str, list[str]] = {}
    for each in advised:
        for vm in each.vms:
            words.setdefault(vm, []).append(str(each.schedule))
    return {vm: "; ".join(lines) for vm, lines in words.items()}


def _tell(config: Config, where: str) -> None:
    from tasks.server import answers

    url = os.environ.get("PREFECT_API_URL", "")
    if not answers(url):
        note("no Prefect server answers (PREFECT_API_URL): `vmcellar up`, `vmcellar deploy`, or the flow "
             "reconcile-schedules takes it over")  # fmt: skip
        return
    from deployments import registration
    from tasks import timetable as server

    async def write() -> int:
        todo = await registration.schedule_changes(config, where)
        await server.apply(todo)
        return len(todo)

    note(f"{asyncio.run(write())} schedules were changed on the server at {url}")
