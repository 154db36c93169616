"""What a check of the repository found, and what a repair did."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from vmcellar.cli.render.text import size_text
from vmcellar.repository.repair import NotRepaired, Repaired, RepairReport
from vmcellar.repository.scrub import Finding, ScrubReport
from vmcellar.repository.scrub_sample import Taken

RANGES_SHOWN = 20
NEXT = {
    "point": "lost unless a copy has it (verify --repair --from STORAGE); other points do not need it",
    "index": "nothing is lost: `vmcellar rebuild-index` makes it anew",
    "pin": "its point stays pinned; what its note said is lost unless a copy has it (verify --repair --from STORAGE)",
    "copy": "another may be whole: `verify --all --deep --repair --from TIER` removes this, `tiers move` makes it anew",
    "evidence": "no point depends on it: `vmcellar drill POINT` makes new evidence, or a copy has it (verify --repair)",
}
"""What to do about a damaged object that no disk range hangs on."""


def scrub_text(report: ScrubReport, deep: bool) -> Group:
    """A headline, then each damaged object with the disk ranges that it touches."""
    counted = f"{report.points} points, {report.packs} packs, {report.objects} objects"
    how = (
        f"{counted} read in full ({size_text(report.bytes)})"
        if deep
        else f"{counted}; contents of packs not read (--deep)"
    )
    if report.asleep:
        how += f"; {report.asleep} packs lie in an archive class and were not read"
    if report.ok:
        return Group(Text(f"whole: {how}", style="green"))
    bad = len(report.findings)
    headline = Text(f"DAMAGED: {bad} object{'' if bad == 1 else 's'}; {how}", style="bold red")
    return Group(headline, *(_finding(finding) for finding in report.findings), _advice(report))


def _advice(report: ScrubReport) -> Text:
    lines = []
    if any(finding.kind not in NEXT for finding in report.findings):
        lines = [
            "next: `vmcellar verify --all --deep --repair --from STORAGE` where a copy of the repository exists;",
            "  else run a backup of the VMs named: it reads the ranges again whose content the disks still have;",
            "  restore --best-effort restores the rest of a point and lists what it lacks",
        ]
    return Text("\n".join(lines))


def sample_text(taken: Taken) -> Text:
    """What was picked, and how to pick it again."""
    rest = f"; {taken.never} others were never read" if taken.never else ""
    return Text(f"sample: {taken.picked} of {taken.of} {taken.kind}s, seed {taken.seed}{rest}")


def repair_text(report: RepairReport) -> Text:
    """A line per object that was mended or could not be."""
    lines = mended_lines(report.repaired, report.not_repaired, dry_run=report.dry_run)
    if report.elsewhere:
        lines.append(
            f"{len(report.elsewhere)} points are only in the copy (pruned here, or lost): "
            f"{', '.join(report.elsewhere[:RANGES_SHOWN])}; `verify ID --repair --from STORAGE` brings one back"
        )
    return Text("\n".join(lines or ["nothing to repair"]))


def mended_lines(repaired: Sequence[Repaired], failed: Sequence[NotRepaired], *, dry_run: bool) -> list[str]:
    """A line for each."""
    done = "would be repaired" if dry_run else "repaired"
    return [
        *(f"{done}: {each.kind} {each.key} (was {each.was})" for each in repaired),
        *(f"not repaired: {each.kind} {each.key}: {each.reason}" for each in failed),
    ]


def _finding(finding: Finding) -> Text:
    lines = [f"{finding.kind} {finding.name}: {finding.problem}"]
    if finding.kind in NEXT:
        lines.append(f"  {NEXT[finding.kind]}")
    elif not finding.ranges:
        lines.append("  no restore point loses anything by it")
    for part in finding.ranges[:RANGES_SHOWN]:
        where = f"bytes {part.offset} to {part.offset + part.length} ({size_text(part.length)})"
        lines.append(f"  {part.vm} {part.point} {part.disk}: {where}")
    if len(finding.ranges) > RANGES_SHOWN:
        lines.append(f"  and {len(finding.ranges) - RANGES_SHOWN} more ranges (--json lists all)")
    return Text("\n".join(lines))
