"""Backup jobs as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from vmcellar.backup.selection import KnownVm
    from vmcellar.config.jobs import BackupJob


def jobs_table(jobs: Sequence[BackupJob], matched: Mapping[str, Sequence[KnownVm]]) -> Table:
    """A row per job, with the VMs that it matches by name."""
    table = Table("job", "schedule", "domains", "VMs now", box=None, pad_edge=False)
    for job in jobs:
        vms = ", ".join(vm.name if vm.running else f"{vm.name} (off)" for vm in matched[job.name])
        cells = (job.name, str(job.schedule or "by hand"), ", ".join(job.domains), vms or "none")
        table.add_row(*(Text(cell) for cell in cells))  # a glob such as web[12] is no markup
    return table
