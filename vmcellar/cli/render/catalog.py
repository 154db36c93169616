"""The catalog and the capacity of tiers, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from math import isnan
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vmcellar.cli.render.text import seconds_text, size_text, time_text
from vmcellar.policy.costs import money_text

if TYPE_CHECKING:
    import pandas as pd

    from vmcellar.analysis.capacity import TierCapacity
    from vmcellar.analysis.overview import VmOverview
    from vmcellar.analysis.whatif import Outcome
    from vmcellar.catalog.catalog import Catalog

BAD_ROWS = 20
"""Rows of a quarantine that are printed; all are in the JSON."""


def overview_table(vms: Iterable[VmOverview]) -> Table:
    """A row per VM."""
    table = Table("VM", box=None, pad_edge=False)
    for name in ("runs", "without point"):
        table.add_column(name, justify="right")
    for name in ("first", "last", "last point"):
        table.add_column(name)
    for name in ("disks", "stored"):
        table.add_column(name, justify="right")
    for vm in vms:
        table.add_row(
            vm.vm,
            str(vm.runs),
            str(vm.failed),
            time_text(vm.first.isoformat()),
            time_text(vm.last.isoformat()),
            time_text(vm.last_ok.isoformat()) if vm.last_ok else "none",
            size_text(vm.bytes_size),
            size_text(vm.bytes_stored),
        )
    return table


def bad_table(bad: pd.DataFrame) -> Table:
    """The rows that no analysis uses, and why."""
    table = Table(title=f"{len(bad)} rows that no analysis uses", title_justify="left", box=None, pad_edge=False)
    for name in ("VM", "disk", "started", "run", "why"):
        table.add_column(name)
    for row in bad.head(BAD_ROWS).itertuples():
        table.add_row(str(row.vm), str(row.disk), str(row.started), str(row.run_id), str(row.reasons))
    return table


def overview_json(catalog: Catalog, vms: Iterable[VmOverview], bad: pd.DataFrame) -> dict[str, Any]:
    """The fields of `catalog show --json`."""
    named = [name for name in ("run_id", "vm", "disk", "reasons") if name in bad.columns]
    quarantined = bad[named].astype(str).to_dict("records")
    return {
        "catalog": catalog.name,
        "rows": catalog.counts(),
        "vms": [_plain(asdict(vm)) for vm in vms],
        "quarantined": quarantined,
    }


def capacity_table(tiers: Iterable[TierCapacity]) -> Table:
    """A row per tier."""
    table = Table("tier", box=None, pad_edge=False)
    for name in ("used", "free", "added a day"):
        table.add_column(name, justify="right")
    for name in ("full on", "80 % between", "note"):
        table.add_column(name)
    for tier in tiers:
        between = f"{_date(tier.earliest)} and {_date(tier.latest)}" if tier.earliest else ""
        table.add_row(
            tier.tier,
            size_text(tier.used),
            "unknown" if tier.free is None else size_text(tier.free),
            "unknown" if tier.per_day is None else size_text(tier.per_day),
            _date(tier.full) if tier.full else "",
            between,
            tier.reason,
        )
    return table


def costs_table(tiers: Iterable[TierCapacity]) -> Table:
    """What each tier with a price costs a month, now and to come, with 80 % intervals, and what a thaw of all would."""
    table = Table("tier", "when", box=None, pad_edge=False)
    for name in ("costs a month", "80 % between", "to thaw all once"):
        table.add_column(name, justify="right")
    for tier in tiers:
        for cost in tier.costs:
            between = f"{money_text(cost.low)} and {money_text(cost.high)}" if cost.days else ""
            thaw = "reads at once" if cost.thaw is None else money_text(cost.thaw)
            when = f"in {cost.days} days" if cost.days else "now"
            table.add_row(tier.tier, when, money_text(cost.month), between, thaw)
    return table


def capacity_json(tiers: Iterable[TierCapacity]) -> list[dict[str, Any]]:
    """The fields of `capacity --json`; sizes in bytes, instants in UTC."""
    return [_plain(asdict(tier)) for tier in tiers]


def scenarios_table(outcomes: Sequence[Outcome]) -> Table:
    """A row per scenario; what is saved is against the first."""
    table = Table("scenario", box=None, pad_edge=False)
    for name in ("held", "bill of 30 days", "saved", "runs", "usual interval", "at work", "longest", "late"):
        table.add_column(name, justify="right")
    first = outcomes[0].bill.total
    for one in outcomes:
        saved = f"{1 - one.bill.total / first:.0%}" if first else ""
        bill = money_text(one.bill.total)
        work = (seconds_text(one.busy), seconds_text(one.longest), str(one.late))
        table.add_row(one.scenario.name, size_text(one.total), bill, saved, str(one.runs), _interval(one), *work)
    return table


def _interval(one: Outcome) -> str:
    """One run has none."""
    return "unknown" if isnan(one.interval) else seconds_text(one.interval)


def scenarios_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The fields of `what-if --json`; bytes, seconds, and the currency of the prices."""
    return [
        {
            "scenario": one.scenario.name,
            "held": one.total,
            "tiers": dict(one.held),
            "bill": {**asdict(one.bill), "total": one.bill.total},
            "stored": one.stored,
            "runs": one.runs,
            "interval": None if isnan(one.interval) else one.interval,
            "rate": one.scenario.rate,
            "busy": one.busy,
            "longest": one.longest,
            "late": one.late,
        }
        for one in outcomes
    ]


def _date(moment: datetime | None) -> str:
    return "later" if moment is None else moment.astimezone().strftime("%Y-%m-%d")


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
