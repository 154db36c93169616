"""Results as tables that people read, in notebooks and in the UI: sizes and times as words, one row per thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from vmcellar.analysis.objectives import beyond
from vmcellar.backup.report import size_text, span_text
from vmcellar.policy.costs import money_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmcellar.analysis.anomalies import Anomaly
    from vmcellar.analysis.capacity import TierCapacity
    from vmcellar.analysis.followed import StorageGain
    from vmcellar.analysis.forecast import Outlook
    from vmcellar.analysis.next_run import NextRun
    from vmcellar.analysis.overview import VmOverview
    from vmcellar.analysis.quality import Finding
    from vmcellar.analysis.unjudged import Unjudged
    from vmcellar.analysis.whatif import Outcome
    from vmcellar.catalog.models import Anomaly as Row

HOUR, DAY = 3600.0, 86400.0


def vms(found: Iterable[VmOverview]) -> pd.DataFrame:
    """What a history holds of each VM."""
    return _frame(
        ("VM", "runs", "without point", "first", "last point", "disks", "stored"),
        [
            (one.vm, one.runs, one.failed, f"{one.first:%Y-%m-%d}",
             f"{one.last_ok:%Y-%m-%d %H:%M}" if one.last_ok else "none",
             size_text(one.bytes_size), size_text(one.bytes_stored))
            for one in found
        ],
    )  # fmt: skip


def quality(found: Iterable[Finding]) -> pd.DataFrame:
    """The rules that some row misses."""
    return _frame(
        ("rule", "what becomes of the rows", "rows"),
        [
            (one.reason, "not used" if one.severity == "critical" else "told", one.rows)
            for one in found
            if one.rows
        ],
    )  # fmt: skip


def capacity(tiers: Iterable[TierCapacity]) -> pd.DataFrame:
    """Each tier now and to come."""
    return _frame(
        ("tier", "used", "free", "added a day", "full on", "80 % between", "note"),
        [
            (
                tier.tier, size_text(tier.used), "unknown" if tier.free is None else size_text(tier.free),
                "unknown" if tier.per_day is None else size_text(tier.per_day),
                f"{tier.full:%Y-%m-%d}" if tier.full else "",
                f"{tier.earliest:%Y-%m-%d} and " + (f"{tier.latest:%Y-%m-%d}" if tier.latest else "later")
                if tier.earliest else "",
                tier.reason,
            )
            for tier in tiers
        ],
    )  # fmt: skip


def costs(tiers: Iterable[TierCapacity]) -> pd.DataFrame:
    """What each tier with a price costs a month, now and to come, and what a thaw of all of it would."""
    return _frame(
        ("tier", "in days", "costs a month", "80 % between", "to thaw all once"),
        [
            (tier.tier, one.days, money_text(one.month), f"{money_text(one.low)} and {money_text(one.high)}",
             "reads at once" if one.thaw is None else money_text(one.thaw))
            for tier in tiers for one in tier.costs
        ],
    )  # fmt: skip


def rpo(table: pd.DataFrame) -> pd.DataFrame:
    """`objectives.rpo` with the VMs that are worst off first."""
    ordered = table.loc[beyond(table).sort_values(ascending=False, kind="stable").index]
    return _frame(
        ("VM", "newest point", "usual worst", "worst ever", "target", "breaches", "time beyond it"),
        [
            (row.vm, *(map(span_text, (row.age, row.typical, row.worst)) if row.runs else ("none", "", "")),
             "none" if pd.isna(row.target) else span_text(row.target), row.breaches,
             f"{row.share:.1%}" if row.runs else "")
            for row in _rows(ordered)
        ],
    )  # fmt: skip


def rto(table: pd.DataFrame) -> pd.DataFrame:
    """`objectives.rto`."""
    return _frame(
        ("VM", "disks", "drills", "last drill", "it took", "predicted"),
        [
            (row.vm, size_text(row.bytes_size), row.drills,
             "never" if pd.isna(row.last_drill) else f"{row.last_drill:%Y-%m-%d}",
             span_text(row.measured), span_text(row.predicted))
            for row in _rows(table)
        ],
    )  # fmt: skip


def anomalies(found: Iterable[Anomaly]) -> pd.DataFrame:
    """What is strange, strongest first."""
    return _frame(
        ("VM", "disk", "what", "since", "until", "times its threshold", "seen"),
        [
            (one.vm, one.disk, one.kind, _moment(one.at), _moment(one.last), f"{one.score:.1f}", one.text)
            for one in sorted(found, key=lambda one: -one.score)
        ],
    )


def unjudged(found: Iterable[Unjudged]) -> pd.DataFrame:
    """Of what nothing strange can be told, and why."""
    return _frame(("VM", "disk", "why"), [(one.vm, one.disk, one.reason) for one in found])


def storage_gains(found: Iterable[StorageGain]) -> pd.DataFrame:
    """What came of advice on storing."""
    return _frame(
        ("about", "of", "advised", "on", "figure", "before", "predicted", "came", "verdict"),
        [
            (one.about, one.what, one.advised, _moment(one.time), one.unit, f"{one.before:.4g}",
             f"{one.predicted:.4g}", "" if one.came is None else f"{one.came:.4g}", one.verdict)
            for one in found
        ],
    )  # fmt: skip


def consequences(rows: Iterable[Row]) -> pd.DataFrame:
    """Anomalies that had consequences: those that wait to be judged first, then by time, newest first."""
    return _frame(
        ("VM", "what", "since", "pinned", "full", "drill", "judged"),
        [
            (one.vm, one.kind, _moment(one.at), ", ".join(one.pins) or "nothing", "asked for" if one.full else "no",
             one.drill or "no", one.verdict if one.judged is not None else "not yet")
            for one in sorted(rows, key=lambda one: (one.judged is not None, -one.at))
        ],
    )  # fmt: skip


def outlook(made: Outlook, days: float = 7.0) -> pd.DataFrame:
    """What each disk is expected to change in the coming days, and how that was found."""
    return _frame(
        ("VM", "disk", f"change in {days:g} days", "model"),
        [
            (one.vm, one.disk, size_text(one.expected(made.now, made.now + days * DAY)), one.note)
            for one in made.forecasts
        ]
        + [(one.vm, one.disk, "no forecast", one.reason) for one in made.refusals],
    )


def next_runs(runs: Iterable[NextRun]) -> pd.DataFrame:
    """The next incremental of each VM."""
    return _frame(
        ("VM", "due", "will store", "80 % between", "will take"),
        [
            (one.vm, _moment(one.due), size_text(one.stored.middle),
             f"{size_text(one.stored.low[80])} and {size_text(one.stored.high[80])}", span_text(one.seconds.middle))
            for one in runs
        ],
    )  # fmt: skip


def scenarios(outcomes: Sequence[Outcome], currency: str = "$") -> pd.DataFrame:
    """What each scenario comes to; the saving is against the first."""
    first = outcomes[0].bill.total if outcomes else 0.0
    return _frame(
        ("scenario", "held", "bill of 30 days", "saved", "runs", "usual interval", "at work", "longest", "late"),
        [
            (one.scenario.name, size_text(one.total), f"{currency}{money_text(one.bill.total)}",
             f"{1 - one.bill.total / first:.0%}" if first else "", one.runs, span_text(one.interval),
             span_text(one.busy), span_text(one.longest), one.late)
            for one in outcomes
        ],
    )  # fmt: skip


def markdown(table: pd.DataFrame, nothing: str = "Nothing.") -> str:
    """A table in Markdown."""
    if table.empty:
        return nothing
    rows = [[str(name) for name in table.columns], ["---"] * len(table.columns)]
    rows += [[str(value).replace("|", "\\|") for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _frame(columns: tuple[str, ...], rows: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples, whose fields are of the types that the docstring of the table says."""
    return iter(table.itertuples())


def _moment(seconds: float) -> str:
    return f"{pd.Timestamp(seconds, unit='s', tz='UTC'):%Y-%m-%d %H:%M}"
