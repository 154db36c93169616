"""Service levels as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from vmcellar.cli.render.text import seconds_text
from vmcellar.quality.slo import Level

DAY = 86400.0


def levels_table(levels: Iterable[Level]) -> Table:
    """A row per VM; a figure beside its limit."""
    table = Table("VM", "job", "newest verified", box=None, pad_edge=False)
    for name in ("RPO", "RTO", "predicted", "drilled", "proven"):
        table.add_column(name, justify="right")
    table.add_column("")
    for level in levels:
        table.add_row(
            level.vm,
            level.job or "none",
            level.point or "none",
            _against(level.rpo, level.rpo_limit),
            _against(level.rto, level.rto_limit),
            "unknown" if level.predicted is None else span_text(level.predicted),
            _ago(level.drilled),
            _ago(level.proven),
            Text("; ".join(level.problems), style="bold red") if level.problems else Text("ok", style="green"),
        )
    return table


def _against(value: float | None, limit: float | None) -> str:
    shown = "unknown" if value is None else span_text(value)
    return shown if limit is None else f"{shown} of {span_text(limit)}"


def _ago(age: float | None) -> str:
    return "never" if age is None else f"{span_text(age)} ago"


def span_text(seconds: float) -> str:
    """Seconds as words, from two days on in days."""
    return f"{seconds / DAY:.1f} d" if seconds >= 2 * DAY else seconds_text(seconds)
