"""What a thaw costs and takes, and how far the requested ones have come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vmcellar.cli.render.text import size_text, time_text
from vmcellar.policy.costs import Offer
from vmcellar.restore.thaw import ThawPlan, ThawRecord, ThawStatus
from vmcellar.tiers.base import ArchiveState

_STATES = {
    "archived": "archived, to be thawed",
    "thawing": "being thawed already",
    "thawed": "thawed, readable for a time",
    "readable": "readable at once",
}


def thaw_json(plan: ThawPlan) -> dict[str, Any]:
    """The fields of `thaw --json` and of `thaw` in `restore --plan --json`."""
    return {
        "point": plan.point,
        "vm": plan.vm,
        "days": plan.days,
        "waits": plan.waits,
        **{state: _counted(plan.in_state(state)) for state in _STATES},
        "offers": [{**asdict(offer), "total": offer.total} for offer in plan.offers],
        "packs": [asdict(pack) for pack in plan.packs],
    }


def _counted(packs: Sequence[ArchiveState]) -> dict[str, int]:
    return {"packs": len(packs), "bytes": sum(pack.size for pack in packs)}


def thaw_text(plan: ThawPlan) -> Group:
    """Packs by state, and a line per speed with hours and cost."""
    lines = [Text(f"point {plan.point} of {plan.vm}: packs on tiers with archive classes")]
    for state, words in _STATES.items():
        if found := plan.in_state(state):
            lines.append(Text(f"  {len(found)} packs, {size_text(sum(pack.size for pack in found))}: {words}"))
    if plan.offers:
        return Group(*lines, _offers_table(plan.offers, plan.days))
    if plan.waits:
        lines.append(Text("  what a thaw costs is not known: set `prices:` of the tier in vmcellar.yaml"))
    return Group(*lines)


def _offers_table(offers: Sequence[Offer], days: int) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("speed", "readable in", "thaw", f"copies, {days} days", "reading", "total"):
        table.add_column(name, justify="left" if name == "speed" else "right")
    for offer in offers:
        money = (offer.retrieval, offer.copies, offer.transfer, offer.total)
        table.add_row(offer.speed, hours_text(offer.hours), *(money_text(amount) for amount in money))
    return table


def record_json(record: ThawRecord) -> dict[str, Any]:
    """The fields of a request."""
    return {
        **{name: value for name, value in asdict(record).items() if name != "keys"},
        "requested": _iso(record.requested),
        "ready": _iso(record.ready) if record.ready is not None else None,
        "packs": len(record.keys),
    }


def status_json(status: ThawStatus) -> dict[str, Any]:
    """The fields of `thaw --status --json`."""
    return {
        **record_json(status.record),
        "state": status.state,
        "readable": status.readable,
        "thawing": status.thawing,
        "archived": status.archived,
        "until": _iso(status.until) if status.until is not None else None,
    }


def status_table(found: Sequence[ThawStatus]) -> Table:
    """One line per request."""
    table = Table(box=None, header_style="bold")
    for name in ("POINT", "VM", "SPEED", "ASKED", "EXPECTED", "PACKS", "READABLE", "STATE"):
        table.add_column(name)
    for status in found:
        record = status.record
        table.add_row(
            record.point,
            record.vm,
            record.speed,
            time_text(_iso(record.requested)),
            time_text(_iso(record.ready)) if record.ready is not None else "",
            str(len(record.keys)),
            str(status.readable),
            _state_text(status),
        )
    return table


def _state_text(status: ThawStatus) -> str:
    if status.state == "ready":
        until = f" until {time_text(_iso(status.until))}" if status.until is not None else ""
        return f"ready: restore it{until}"
    return {
        "thawing": "being thawed",
        "incomplete": f"{status.archived} packs are archived: repeat `vmcellar thaw {status.record.point}`",
        "gone": "its packs are gone: the point was dropped",
    }[status.state]


def money_text(amount: float) -> str:
    """An amount in the currency of the price table, exact to a hundredth, or more where it is below one."""
    return f"{amount:.2f}" if amount >= 1 or amount == 0 else f"{amount:.4f}"


def hours_text(hours: float) -> str:
    """`12 h`, or minutes below one."""
    return f"{hours:.0f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
