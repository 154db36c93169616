"""The doctor's report as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from vmcellar.cli.checks.finding import Finding

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "bold red"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """A row per finding, its remedy on a line of its own below it."""
    table = Table("status", "check", "found, and what to do", box=None, pad_edge=False)
    for finding in findings:
        said = Text(finding.detail)
        if finding.remedy:
            said.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(Text(finding.status, style=_STYLES[finding.status]), finding.check, said)
    return table
