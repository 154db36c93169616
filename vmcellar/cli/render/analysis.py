"""Forecasts, anomalies and advice as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vmcellar.cli.render.text import seconds_text, size_text, time_text

if TYPE_CHECKING:
    from vmcellar.analysis.anomalies import Anomaly
    from vmcellar.analysis.forecast import Forecast, Outlook
    from vmcellar.analysis.next_run import NextRun, Range

DAY = 86400.0
STYLES = {"ransomware": "bold red", "stuck": "bold red", "freeze": "yellow", "slow": "yellow"}


def rfc3339(moment: float) -> str:
    """Seconds since the epoch as UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def outlook_json(outlook: Outlook, runs: Sequence[NextRun]) -> dict[str, Any]:
    """All of it, steps included."""
    return {
        "now": rfc3339(outlook.now),
        "disks": [_forecast_json(one) for one in outlook.forecasts],
        "next_runs": [_next_run_json(one) for one in runs],
        "refused": [{"vm": one.vm, "disk": one.disk, "reason": one.reason} for one in outlook.refusals],
    }


def _forecast_json(one: Forecast) -> dict[str, Any]:
    return {
        "vm": one.vm,
        "disk": one.disk,
        "model": one.model,
        "mase": round(one.mase, 4),
        "note": one.note,
        "step_hours": one.step,
        "starts": [rfc3339(float(moment)) for moment in one.starts],
        "bytes_median": [round(float(value)) for value in one.middle],
        "bytes_mean": [round(float(value)) for value in one.mean],
        **{f"bytes_low{level}": [round(float(value)) for value in values] for level, values in one.low.items()},
        **{f"bytes_high{level}": [round(float(value)) for value in values] for level, values in one.high.items()},
    }


def _next_run_json(one: NextRun) -> dict[str, Any]:
    return {
        "vm": one.vm,
        "due": rfc3339(one.due),
        "bytes_changed": _range_json(one.changed),
        "bytes_stored": _range_json(one.stored),
        "seconds": _range_json(one.seconds),
    }


def _range_json(one: Range) -> dict[str, float]:
    ends = {f"{name}{level}": value for name in ("low", "high") for level, value in getattr(one, name).items()}
    return {name: round(value, 3) for name, value in {"median": one.middle, **ends}.items()}


def outlook_table(outlook: Outlook) -> Table:
    """A row per disk: the next day and week, and how that was made."""
    table = Table("VM", "disk", "next day", "next 7 days", "made by", box=None, pad_edge=False)
    for one in outlook.forecasts:
        day, week = (one.expected(one.starts[0], one.starts[0] + days * DAY) for days in (1, 7))
        table.add_row(one.vm, one.disk, size_text(day), size_text(week), one.note)
    return table


def next_runs_table(runs: Iterable[NextRun]) -> Table:
    """A row per VM: its next run, medians with the 80 % interval."""
    table = Table("next run", "due", "changed", "80 %", "stored", "80 %", "takes", "80 %", box=None, pad_edge=False)
    for one in runs:
        table.add_row(
            one.vm,
            time_text(rfc3339(one.due)),
            size_text(one.changed.middle),
            _between(one.changed, size_text),
            size_text(one.stored.middle),
            _between(one.stored, size_text),
            seconds_text(one.seconds.middle),
            _between(one.seconds, seconds_text),
        )
    return table


def _between(one: Range, text: Any) -> str:
    return f"{text(one.low[80])} – {text(one.high[80])}"  # noqa: RUF001 an en dash, as ranges have


def anomaly_json(one: Anomaly) -> dict[str, Any]:
    """The fields of an anomaly."""
    return {
        "vm": one.vm,
        "disk": one.disk,
        "kind": one.kind,
        "first_seen": rfc3339(one.at),
        "last_seen": rfc3339(one.last),
        "score": round(one.score, 2),
        "text": one.text,
    }


def anomalies_table(found: Iterable[Anomaly]) -> Table:
    """A row per anomaly, oldest first."""
    table = Table("first seen", "VM", "disk", "what", "score", "why", box=None, pad_edge=False)
    for one in found:
        kind = Text(one.kind, style=STYLES.get(one.kind, ""))
        table.add_row(time_text(rfc3339(one.at)), one.vm, one.disk, kind, f"{one.score:.1f}", one.text)
    return table
