"""Forecasts, anomalies and advice as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vmcellar.cli.render.text import seconds_text, size_text, time_text
from vmcellar.policy.costs import money_text

if TYPE_CHECKING:
    from vmcellar.analysis.advise import Advice, Change
    from vmcellar.analysis.anomalies import Anomaly
    from vmcellar.analysis.followed import StorageGain
    from vmcellar.analysis.forecast import Forecast, Outlook
    from vmcellar.analysis.gains import Gain
    from vmcellar.analysis.judging import Judgement, Starts
    from vmcellar.analysis.next_run import NextRun, Range
    from vmcellar.analysis.storing import Proposal
    from vmcellar.catalog.models import Anomaly as Row

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
        "vms": [_forecast_json(one) for one in outlook.totals],
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
    """A row per disk, and one for all disks of a VM: the next day and week, and how that was made."""
    table = Table("VM", "disk", "next day", "next 7 days", "made by", box=None, pad_edge=False)
    for one in sorted((*outlook.forecasts, *outlook.totals), key=lambda one: (one.vm, one.disk == "", one.disk)):
        day, week = (one.expected(one.starts[0], one.starts[0] + days * DAY) for days in (1, 7))
        table.add_row(one.vm, one.disk or "all", size_text(day), size_text(week), one.note)
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


def consequence_json(row: Row) -> dict[str, Any]:
    """What was done about an anomaly, and how it was judged."""
    return {
        "vm": row.vm,
        "disks": row.disks,
        "kind": row.kind,
        "first_seen": rfc3339(row.at),
        "last_seen": rfc3339(row.last),
        "trusted_before": rfc3339(row.began),
        "text": row.text,
        "pinned": row.pins,
        "full": row.full,
        "drill": row.drill,
        "judged": None if row.judged is None else rfc3339(row.judged),
        "verdict": row.verdict,
    }


def consequences_table(rows: Iterable[Row]) -> Table:
    """A row per anomaly that had consequences."""
    table = Table("done about", "VM", "since", "pinned", "full", "drill", "judged", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            Text(row.kind, style=STYLES.get(row.kind, "")),
            row.vm,
            time_text(rfc3339(row.at)),
            "\n".join(row.pins) or "nothing",
            "asked for" if row.full else "no",
            row.drill or "no",
            row.verdict if row.judged is not None else "not yet",
        )
    return table


def starts_text(starts: Starts) -> str:
    """Minutes of a day as people write schedules: `02:00`, `4 times from 01:12`."""
    first = f"{starts[0] // 60:02d}:{starts[0] % 60:02d}"
    return first if len(starts) == 1 else f"{len(starts)} times from {first}"


def advice_json(advice: Advice) -> dict[str, Any]:
    """All changes, sums before and after, peaks and what cannot be had; `starts` are minutes of a UTC day."""
    return {
        "changes": [_change_json(one) for one in advice.changes],
        "before": _judgement_json(advice.total(after=False)),
        "after": _judgement_json(advice.total(after=True)),
        "peaks": {host: {"before": was, "after": will} for host, (was, will) in advice.peaks.items()},
        "conflicts": list(advice.conflicts),
        "not_known": list(advice.unknown),
        "money_a_month": None if advice.money is None else dict(zip(("before", "after"), advice.money, strict=True)),
        "applied": False,
    }


def _change_json(one: Change) -> dict[str, Any]:
    return {
        "vm": one.vm,
        "host": one.host,
        "kind": "incremental",
        "before": {"starts": list(one.before), **_judgement_json(one.was)},
        "after": {"starts": list(one.after), **_judgement_json(one.will)},
        "why": one.why,
        "decided_by_a_tier": list(one.decided),
    }


def _judgement_json(one: Judgement) -> dict[str, float]:
    return {
        "breaches_a_year": round(one.breaches * 365, 2),
        "hours_over_rpo_a_year": round(one.late_hours * 365, 2),
        "exposed_bytes": round(one.exposure),
        "work_seconds_a_day": round(one.seconds, 1),
    }


def advice_table(advice: Advice) -> Table:
    """A row per VM: before, after, and why."""
    table = Table("VM", "today", "advised", "exposed", "then", "why", box=None, pad_edge=False)
    for one in advice.changes:
        after = starts_text(one.after)
        table.add_row(
            one.vm,
            starts_text(one.before),
            after if one.after == one.before else Text(after, style="bold"),
            size_text(one.was.exposure),
            size_text(one.will.exposure),
            one.why,
        )
    return table


def advice_totals(advice: Advice) -> Table:
    """The sums, before beside after."""
    table = Table("all VMs", "today", "advised", box=None, pad_edge=False)
    was, will = advice.total(after=False), advice.total(after=True)
    table.add_row("RPO breaches a year", f"{was.breaches * 365:.0f}", f"{will.breaches * 365:.0f}")
    table.add_row("hours over the RPO a year", f"{was.late_hours * 365:.0f}", f"{will.late_hours * 365:.0f}")
    table.add_row("bytes in no point, on average", size_text(was.exposure), size_text(will.exposure))
    table.add_row("work a day", seconds_text(was.seconds), seconds_text(will.seconds))
    if advice.money is not None:
        table.add_row("runs cost a month", *map(money_text, advice.money))
    for host, (before, after) in advice.peaks.items():
        table.add_row(f"most runs at once on {host}", str(before), str(after))
    return table


def gains_table(found: Iterable[Gain]) -> Table:
    """A row per VM: breaches in the days since the change, and work a day; before, predicted and come."""
    table = Table("VM", "since", "days", "breaches", "predicted", "came", "work a day", "predicted", "came", "verdict",
                  box=None, pad_edge=False)  # fmt: skip
    for one in found:
        breaches = [str(each.breaches) if each.breaches is not None else "" for each in (one.before, one.after)]
        work = [seconds_text(value) for value in (one.before.seconds, one.work, one.after.seconds)]
        table.add_row(
            one.vm, time_text(rfc3339(one.time)), f"{one.after.days:.1f}", breaches[0], f"{one.expected:.1f}",
            breaches[1], *work, one.verdict,
        )  # fmt: skip
    return table


def proposals_table(found: Iterable[Proposal]) -> Table:
    """A row per proposal: today, what is advised, and the gain."""
    table = Table("about", "of", "today", "advised", "gain", box=None, pad_edge=False)
    for one in found:
        advised = Text(one.advised, style="bold") if one.advised else Text("stays")
        table.add_row(one.subject, one.what, one.today, advised, one.gain)
    return table


def storage_gains_table(found: Iterable[StorageGain]) -> Table:
    """A row per piece of advice on storing: the figure before, as predicted, and as it came."""
    table = Table("about", "of", "advised", "since", "figure", "before", "predicted", "came", "verdict", box=None,
                  pad_edge=False)  # fmt: skip
    for one in found:
        came = "" if one.came is None else f"{one.came:.4g}"
        table.add_row(
            one.about, one.what, one.advised, time_text(rfc3339(one.time)), one.unit, f"{one.before:.4g}",
            f"{one.predicted:.4g}", came, one.verdict,
        )  # fmt: skip
    return table
