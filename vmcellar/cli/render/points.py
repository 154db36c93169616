"""Restore points: as rows, in full, and as the JSON that other programs may rely on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vmcellar.cli.render.text import seconds_text, size_text, time_text
from vmcellar.repository.points import RestorePoint

MANY = 500
"""More points than this are listed as plain lines."""
WORDS = ("point", "VM", "time", "kind", "consistency", "verified")
VERIFIED = WORDS.index("verified")
FIGURES = ("read", "changed", "stored", "disks")


def point_json(point: RestorePoint) -> dict[str, Any]:
    """The fields of `list --json`; they are never renamed or removed."""
    return {
        "id": point.id,
        "vm": point.vm,
        "time": rfc3339(point),
        "kind": point.kind,
        "parent": point.parent,
        "consistency": point.consistency,
        "verified": point.verified,
        "bytes_read": point.bytes_read,
        "bytes_changed": point.bytes_changed,
        "bytes_stored": point.bytes_stored,
        "disks": [{"target": disk.target, "size": disk.size, "root": disk.root} for disk in point.disks],
    }


def rfc3339(point: RestorePoint) -> str:
    """The point's instant, in UTC, to the millisecond."""
    return point.when.isoformat(timespec="milliseconds")


def point_details_json(point: RestorePoint) -> dict[str, Any]:
    """The fields of `show --json`: those of `list --json`, with everything else that the point records."""
    return {**asdict(point), **point_json(point), "disks": [asdict(disk) for disk in point.disks]}


def points_table(points: Iterable[RestorePoint]) -> Table:
    """A row per point; folds what a narrow terminal has no room for. A millisecond for each: see `points_lines`."""
    table = Table(*WORDS, box=None, pad_edge=False)
    for name in FIGURES:
        table.add_column(name, justify="right")
    for point in points:
        cells: list[str | Text] = [Text(cell) for cell in _cells(point)]
        cells[VERIFIED] = _yes_no(point.verified)
        table.add_row(*cells)
    return table


def points_lines(points: Iterable[RestorePoint]) -> Iterator[str]:
    """The same rows as plain lines, for so many points that nobody looks at them in colour."""
    rows = [[*WORDS, *FIGURES], *map(_cells, points)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            " " * (width - cell_len(cell)) + cell if number >= len(WORDS) else cell + " " * (width - cell_len(cell))
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


def _cells(point: RestorePoint) -> list[str]:
    return [
        point.id,
        point.vm,
        time_text(rfc3339(point)),
        point.kind,
        point.consistency,
        "yes" if point.verified else "no",
        size_text(point.bytes_read),
        size_text(point.bytes_changed),
        size_text(point.bytes_stored),
        str(len(point.disks)),
    ]


def point_details(point: RestorePoint) -> Group:
    """One point in full."""
    facts = [
        ("point", point.id),
        ("VM", f"{point.vm} ({point.vm_uuid})"),
        ("time", time_text(rfc3339(point))),
        ("kind", f"{point.kind}{f': {point.reason}' if point.reason else ''}"),
        ("parent", point.parent or "none"),
        ("consistency", f"{point.consistency}{f': {point.consistency_reason}' if point.consistency_reason else ''}"),
        ("verified", "yes" if point.verified else "NO"),
        ("changed", f"{size_text(point.bytes_changed)}, zero {size_text(point.bytes_zero)}"),
        ("read", f"{size_text(point.bytes_read)}, stored before {size_text(point.bytes_known)}"),
        ("stored", f"{size_text(point.bytes_stored)} in packs"),
        ("VM held", f"{seconds_text(point.held_seconds)}, frozen {seconds_text(point.freeze_seconds)}"),
        ("captured", ", ".join(artifact.name for artifact in point.artifacts) or "disks only"),
        ("checkpoint", point.checkpoint or "none"),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts:
        table.add_row(name, Text(value))
    missing = [Text(f"NOT in this point: {disk.target}: {disk.reason}", style="bold red") for disk in point.uncovered]
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in point.warnings]
    return Group(table, Text(), _disks_table(point), *missing, *warnings)


def _disks_table(point: RestorePoint) -> Table:
    table = Table("disk", "format", box=None, pad_edge=False)
    for name in ("size", "read", "changed", "stored"):
        table.add_column(name, justify="right")
    table.add_column("root")
    table.add_column("")
    for disk in point.disks:
        sizes = (disk.size, disk.bytes_read, disk.bytes_changed, disk.bytes_stored)
        why = f"read in full: {disk.reason}" if disk.reason else ""
        table.add_row(disk.target, disk.format, *(size_text(size) for size in sizes), disk.root[:16], why)
    return table


def _yes_no(value: bool) -> Text:
    return Text("yes", style="green") if value else Text("no", style="bold red")
