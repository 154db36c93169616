"""Restore points: as rows, in full, and as the JSON that other programs may rely on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from vmcellar.cli.render.text import size_text, time_text
from vmcellar.repository.points import RestorePoint


def point_json(point: RestorePoint) -> dict[str, Any]:
    """The fields of `list --json`; they are never renamed or removed."""
    return {
        "id": point.id,
        "vm": point.vm,
        "time": point.time,
        "kind": point.kind,
        "parent": point.parent,
        "consistency": point.consistency,
        "verified": point.verified,
        "bytes_read": point.bytes_read,
        "bytes_changed": point.bytes_changed,
        "bytes_stored": point.bytes_stored,
        "disks": [{"target": disk.target, "size": disk.size, "root": disk.root} for disk in point.disks],
    }


def points_table(points: Iterable[RestorePoint]) -> Table:
    """A row per point."""
    table = Table("point", "VM", "time", "kind", "consistency", "verified", box=None, pad_edge=False)
    for name in ("read", "changed", "stored", "disks"):
        table.add_column(name, justify="right")
    for point in points:
        table.add_row(
            point.id,
            point.vm,
            time_text(point.time),
            point.kind,
            point.consistency,
            _yes_no(point.verified),
            size_text(point.bytes_read),
            size_text(point.bytes_changed),
            size_text(point.bytes_stored),
            str(len(point.disks)),
        )
    return table


def _yes_no(value: bool) -> Text:
    return Text("yes", style="green") if value else Text("no", style="bold red")
