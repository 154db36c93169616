"""What a check of the repository found."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from vmcellar.cli.render.text import size_text
from vmcellar.repository.scrub import Finding, ScrubReport

RANGES_SHOWN = 20


def scrub_text(report: ScrubReport, deep: bool) -> Group:
    """A headline, then each damaged object with the disk ranges that it touches."""
    counted = f"{report.points} points, {report.packs} packs, {report.objects} objects"
    how = (
        f"{counted} read in full ({size_text(report.bytes)})"
        if deep
        else f"{counted}; contents of packs not read (--deep)"
    )
    if report.ok:
        return Group(Text(f"whole: {how}", style="green"))
    bad = len(report.findings)
    headline = Text(f"DAMAGED: {bad} object{'' if bad == 1 else 's'}; {how}", style="bold red")
    hint = Text("restore --best-effort restores the rest; the next backup stores damaged chunks anew where it can")
    return Group(headline, *(_finding(finding) for finding in report.findings), hint)


def _finding(finding: Finding) -> Text:
    lines = [f"{finding.kind} {finding.name}: {finding.problem}"]
    for part in finding.ranges[:RANGES_SHOWN]:
        where = f"bytes {part.offset} to {part.offset + part.length} ({size_text(part.length)})"
        lines.append(f"  {part.vm} {part.point} {part.disk}: {where}")
    if len(finding.ranges) > RANGES_SHOWN:
        lines.append(f"  and {len(finding.ranges) - RANGES_SHOWN} more ranges (--json lists all)")
    return Text("\n".join(lines))
