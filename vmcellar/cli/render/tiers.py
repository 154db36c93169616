"""What `tiers` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vmcellar.cli.render.text import size_text
from vmcellar.upkeep.rebalance import RebalanceReport
from vmcellar.upkeep.survey import Survey
from vmcellar.upkeep.tierstat import TierSummary

if TYPE_CHECKING:
    from vmcellar.analysis.capacity import DaysToFull

_COLUMNS = (
    "tier", "packs", "objects", "bytes", "metadata", "only here", "oldest", "per month", "free", "full in", "where",
)  # fmt: skip
_DAY = 86400
_SHOWN = 20


def tiers_json(found: Survey, tiers: Sequence[TierSummary], full: Mapping[str, DaysToFull]) -> dict[str, Any]:
    """The document of `tiers --json`; times in seconds but for `full`, which is in days, sizes in bytes."""
    rows = [{**asdict(tier), "full": _full_json(full.get(tier.name))} for tier in tiers]
    return {"points": found.points, "lost": list(found.lost), "tiers": rows}


def _full_json(found: DaysToFull | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def tiers_text(found: Survey, tiers: Sequence[TierSummary], full: Mapping[str, DaysToFull]) -> Group:
    """A row per tier, then what is wrong."""
    table = Table(*_COLUMNS, box=None)
    table.pad_edge = False
    lines: list[Text] = []
    for tier in tiers:
        if tier.away:
            table.add_row(tier.name, *["?"] * (len(_COLUMNS) - 2), Text("away", style="bold red"))
            lines.append(Text(f"{tier.name} is away: {tier.away}"))
            continue
        table.add_row(
            tier.name,
            str(tier.packs),
            str(tier.objects),
            size_text(tier.bytes),
            size_text(tier.metadata),
            size_text(tier.alone),
            "" if tier.oldest is None else f"{tier.oldest / _DAY:.1f} d",
            f"{tier.cost_month:.2f}",
            "no bound" if tier.free is None else size_text(tier.free),
            _full_text(tier, full.get(tier.name)),
            tier.place,
        )
        if tier.unneeded:
            lines.append(Text(f"{tier.name}: {size_text(tier.unneeded)} that no point needs, or only pinned ones"))
    return Group(table, *lines, *_lost(found.lost))


def _full_text(tier: TierSummary, found: DaysToFull | None) -> str:
    if tier.free is None:
        return "never"
    if found is None or (found.days is None and not found.known):
        return "?"
    return "a year or more" if found.days is None else f"{found.days:.0f} d"


def _lost(keys: Sequence[str]) -> list[Text]:
    if not keys:
        return []
    text = f"LOST: {len(keys)} packs that points need; `vmcellar verify --all` names the points"
    return [Text(text, style="bold red")]


def moves_json(report: RebalanceReport) -> dict[str, Any]:
    """The fields of `tiers move --json`."""
    return {**asdict(report), "ok": report.ok}


def moves_text(report: RebalanceReport) -> Group:
    """What was moved, what was not, and why."""
    would = "would be " if report.dry_run else ""
    lines = [
        f"mirror on {mirror.tier}: {mirror.copied} objects ({size_text(mirror.bytes)}) {would}copied, "
        f"{mirror.removed} {would}removed"
        for mirror in report.mirrors
        if mirror.copied or mirror.removed
    ]
    ways = Counter((_way(move.tiers, move.copy, move.drop)) for move in report.moves)
    sizes: Counter[str] = Counter()
    for move in report.moves:
        sizes[_way(move.tiers, move.copy, move.drop)] += move.size
    lines += [f"{way}: {count} packs, {size_text(sizes[way])} {would}moved" for way, count in sorted(ways.items())]
    if report.dry_run:
        lines += [f"  {move.key}: {move.why}" for move in report.moves[:_SHOWN]]
        if len(report.moves) > _SHOWN:
            lines.append(f"  and {len(report.moves) - _SHOWN} more; --json names all")
    if not report.moves:
        lines.append(f"all {report.packs} packs lie where they should" if report.ok and not report.held else "no moves")
    for reason, count in Counter(held.why for held in report.held).items():
        lines.append(f"held: {count} packs: {reason}")
    if report.separated:
        lines.append(
            f"{would}separated: {len(report.separated)} packs that mostly cooled, {size_text(report.separated_bytes)}; "
            "`vmcellar gc` deletes the old packs after its grace time"
        )
    lines += [f"note: {text}" for text in report.notes]
    texts = [Text(line) for line in lines]
    texts += [Text(f"NOT MOVED: {failed.key}: {failed.why}", style="bold red") for failed in report.failed]
    kept = dict.fromkeys(text for mirror in report.mirrors for text in mirror.kept)
    texts += [Text(f"NOT MIRRORED: {text}", style="bold red") for text in kept]
    return Group(*texts, *_lost(report.lost))


def _way(tiers: Sequence[str], copy: Sequence[str], drop: Sequence[str]) -> str:
    if not copy:
        return f"{', '.join(drop)}: a copy too many"
    return f"{tiers[0]} to {', '.join(copy)}" + ("" if drop else ", a further copy")
