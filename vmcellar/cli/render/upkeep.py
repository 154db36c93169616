"""What prune, pin, gc and consolidate say."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from math import inf
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vmcellar.cli.render.points import rfc3339
from vmcellar.cli.render.text import size_text, time_text
from vmcellar.upkeep.consolidate import ConsolidateReport
from vmcellar.upkeep.gcreport import GcReport
from vmcellar.upkeep.lock import Locked
from vmcellar.upkeep.pins import FoundPin
from vmcellar.upkeep.prune import Decision


def prune_json(plan: Sequence[Decision], dropped: Collection[str], dry_run: bool) -> list[dict[str, Any]]:
    """An entry per point; `dropped` tells whether it is gone now."""
    return [
        {
            "id": decision.point.id,
            "vm": decision.point.vm,
            "time": rfc3339(decision.point),
            "keep": decision.keep,
            "why": decision.why,
            "dropped": decision.point.id in dropped,
            "dry_run": dry_run,
        }
        for decision in plan
    ]


def prune_table(plan: Sequence[Decision]) -> Table:
    """A row per point: does it stay, and why."""
    table = Table("point", "VM", "time", "", "why", box=None, pad_edge=False)
    for decision in plan:
        what = Text("keep", style="green") if decision.keep else Text("drop", style="bold red")
        when = time_text(rfc3339(decision.point))
        table.add_row(decision.point.id, decision.point.vm, when, what, decision.why)
    return table


def prune_summary(plan: Sequence[Decision], dropped: int, dry_run: bool) -> str:
    """One line: how many stay and go, and what comes next."""
    going = sum(not decision.keep for decision in plan)
    if dry_run:
        return f"{len(plan) - going} points would stay, {going} would be dropped; nothing was changed"
    after = "; `vmcellar gc` frees their space" if dropped else ""
    return f"{len(plan) - dropped} points stay, {dropped} were dropped{after}"


def pins_json(pins: Sequence[FoundPin]) -> list[dict[str, Any]]:
    """An entry per pin; one that cannot be read pins all the same, and says no more than whether work holds it."""
    return [
        {"point": each.point, "held": bool(each.holder)}
        | ({"note": each.pin.note, "time": _rfc3339(each.pin.time), "host": each.pin.host} if each.pin else {})
        for each in pins
    ]


def pins_table(pins: Sequence[FoundPin]) -> Table:
    """A row per pin."""
    table = Table("point", "since", "host", "note", box=None, pad_edge=False)
    for each in pins:
        if each.pin:
            table.add_row(each.point, time_text(_rfc3339(each.pin.time)), each.pin.host, each.pin.note)
        else:
            table.add_row(each.point, "?", "?", Text("cannot be read; it pins all the same", style="yellow"))
    return table


def _rfc3339(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")


def gc_json(report: GcReport) -> dict[str, Any]:
    """The fields of `gc --json`."""
    return asdict(report)


def gc_text(report: GcReport) -> Group:
    """What was found, what went, what waits."""
    would = "would be " if report.dry_run else ""
    lines = [
        f"{report.points} points need {report.needed} of {report.packs} packs ({size_text(report.bytes)})",
        f"{would}deleted: {len(report.deleted)} packs, {size_text(report.deleted_bytes)}",
        f"{would}marked: {len(report.marked)} packs, {size_text(report.marked_bytes)}"
        + ("; a run after the grace time deletes them" if report.marked and not report.dry_run else ""),
    ]
    for tier, (until, packs, size) in _by_tier(report.locked).items():
        lines.append(
            f"locked on {tier}: {packs} packs, {size_text(size)}, the last until {_when(until)}; a later run deletes "
            "them"
        )
    if report.extended:
        lines.append(f"locked anew: {report.extended} objects that points need")
    if report.repacked:
        lines.append(
            f"{would}repacked: {len(report.repacked)} mostly dead packs, {size_text(report.repacked_bytes)}, of which "
            f"{size_text(report.repacked_live)} are needed and lie in new packs" + ("" if would else " now")
        )
    if report.staging:
        removed = "would be removed" if report.dry_run else "removed"
        lines.append(
            f"{removed} from staging, left by writers that died: {', '.join(report.staging)} "
            f"({size_text(report.staging_bytes)})"
        )
    lines += [f"waiting: {reason}" for reason in report.waiting]
    lines += [f"note: {text}" for text in report.notes]
    return Group(*(Text(line) for line in lines))


def _by_tier(locked: Sequence[Locked]) -> dict[str, tuple[float, int, int]]:
    """Of each tier: until when the last is locked, how many packs, how many bytes."""
    found: dict[str, tuple[float, int, int]] = {}
    for each in locked:
        until, packs, size = found.get(each.tier, (0.0, 0, 0))
        found[each.tier] = max(until, each.until), packs + 1, size + each.size
    return found


def _when(until: float) -> str:
    return "a legal hold is lifted" if until == inf else time_text(_rfc3339(until))


def consolidate_json(report: ConsolidateReport) -> dict[str, Any]:
    """The fields of `consolidate --json`."""
    return asdict(report)


def consolidate_text(report: ConsolidateReport) -> Group:
    """What was rewritten, and what restores gain."""
    would = "would be " if report.dry_run else ""
    lines = [f"{would}rewritten: {len(report.old)} of {report.packs} packs, {size_text(report.old_bytes)}"]
    if report.old:
        lines.append(f"{size_text(report.live)} of them in {report.new_packs} new packs")
        lines.append(
            f"reads to restore the newest point of every VM: {report.reads_before} before, {report.reads_after} after"
        )
        if not report.dry_run:
            lines.append("the old packs are marked; `vmcellar gc` deletes them after its grace time")
    lines += [f"note: {text}" for text in report.notes]
    return Group(*(Text(line) for line in lines))
