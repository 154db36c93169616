"""What a restore will do, and what it did."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.text import Text

from vmcellar.cli.render.text import seconds_text, size_text
from vmcellar.restore.bring_back import Done
from vmcellar.restore.plan import RestorePlan
from vmcellar.restore.report import LostRange

LOST_SHOWN = 20


def plan_json(plan: RestorePlan) -> dict[str, Any]:
    """The fields of `restore --plan --json`."""
    return {**asdict(plan), "data": plan.data, "keys": list(plan.keys)}


def plan_text(plan: RestorePlan) -> Group:
    """What would be written and read."""
    lines = [Text(f"point {plan.point} of {plan.vm}: everything that a restore needs was found and checked")]
    if plan.lost:
        lines = [Text(f"point {plan.point} of {plan.vm}: parts cannot be restored", style="bold red")]
    lines += [Text(f"  {disk.target}: {size_text(disk.size)}, {size_text(disk.data)} to write") for disk in plan.disks]
    lines.append(Text(f"  to read: {size_text(plan.stored)} from {plan.packs} packs; nothing was written"))
    return Group(*lines, *_lost(plan.lost))


def report_json(done: Done) -> dict[str, Any]:
    """The fields of `restore --json`."""
    value = {**asdict(done.report), "artifacts": {k: str(v) for k, v in done.report.artifacts.items()}}
    value["defined"] = asdict(done.defined) if done.defined else None
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


def report_text(done: Done) -> Group:
    """What was restored, the new VM, what it lacks, and what was lost."""
    report = done.report
    written = sum(disk.written for disk in report.disks)
    lines = [
        Text(f"restored {report.vm}, point {report.point}, to {report.directory} in {seconds_text(report.seconds)}"),
        *(Text(f"  {disk.path}: {size_text(disk.size)}, {size_text(disk.written)} written") for disk in report.disks),
        Text(f"  {size_text(written)} written, {size_text(report.read)} read from the repository"),
    ]
    if done.defined is not None:
        lines.append(
            Text(
                f"defined VM {done.defined.name} ({done.defined.uuid}); start it with: virsh start {done.defined.name}"
            )
        )
        lines += [Text(f"  not carried over: {what}", style="yellow") for what in done.defined.dropped]
    return Group(*lines, *_lost(report.lost))


def _lost(lost: tuple[LostRange, ...]) -> Iterable[Text]:
    for part in lost[:LOST_SHOWN]:
        where = f"{part.target}: bytes {part.offset} to {part.offset + part.length}"
        yield Text(f"  LOST {where}: {part.reason}", style="bold red")
    if len(lost) > LOST_SHOWN:
        yield Text(f"  LOST: {len(lost) - LOST_SHOWN} more ranges (--json lists all)", style="bold red")
