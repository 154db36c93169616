"""What runs did: the points that a backup committed, what recovery found."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vmcellar.backup.model import PointSummary, RecoverAction
from vmcellar.cli.render.text import seconds_text, size_text


def actions_table(actions: Iterable[RecoverAction]) -> Table:
    """A row per thing that recovery found."""
    table = Table("VM", "run", "action", "detail", box=None, pad_edge=False)
    for action in actions:
        table.add_row(action.vm, action.run_id, action.action, action.detail)
    return table


def summary_text(summary: PointSummary) -> Group:
    """One committed point: a headline, its disks, then all that a careful reader should know."""
    headline = Text.assemble(
        (summary.vm, "bold"),
        f": {summary.kind} {summary.id} ({summary.consistency}, {'verified' if summary.verified else 'NOT verified'})",
    )
    why = [Text(f"  {summary.kind} because {summary.reason}")] if summary.reason else []
    figures = Text(
        f"  read {size_text(summary.bytes_read)}, changed {size_text(summary.bytes_changed)}, "
        f"stored {size_text(summary.bytes_stored)}; VM held {seconds_text(summary.held_seconds)}, "
        f"frozen {seconds_text(summary.freeze_seconds)}"
    )
    warnings = [Text(f"  warning: {warning}", style="yellow") for warning in summary.warnings]
    missing = [Text(f"  NOT backed up: {disk}", style="bold red") for disk in summary.uncovered]
    hooks = [Text(f"  {line}", style="bold red" if summary.hook_failures else "") for line in summary.hooks]
    return Group(headline, *why, figures, _disks_table(summary), *missing, *warnings, *hooks)


def _disks_table(summary: PointSummary) -> Table:
    table = Table("  disk", box=None, pad_edge=False)
    for name in ("size", "read", "zero", "changed", "known", "new", "stored"):
        table.add_column(name, justify="right")
    table.add_column("")
    for disk in summary.disks:
        sizes = (
            disk.size,
            disk.bytes_read,
            disk.bytes_zero,
            disk.bytes_changed,
            disk.bytes_known,
            disk.bytes_new,
            disk.bytes_stored,
        )
        why = f"read in full: {disk.full_reason}" if disk.full_reason else ""
        table.add_row(f"  {disk.target}", *(size_text(size) for size in sizes), why)
    return table
