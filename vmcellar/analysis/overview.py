"""What a catalog holds, VM by VM: the first thing to look at when a figure surprises."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class VmOverview:
    """One VM's runs; `last_ok` is None when none was. `failed` counts every run without a point."""

    vm: str
    runs: int
    failed: int
    first: datetime
    last: datetime
    last_ok: datetime | None
    bytes_size: int
    bytes_stored: int


def overview(frame: pd.DataFrame) -> list[VmOverview]:
    """By VM, in order of names; `bytes_size` is of its newest run with a point, `bytes_stored` of all runs."""
    return [_one(str(vm), rows) for vm, rows in frame.groupby("vm", observed=True)]


def _one(vm: str, rows: pd.DataFrame) -> VmOverview:
    runs, good = rows.drop_duplicates("run_id"), rows[rows["ok"]]
    newest = good[good["started"] == good["started"].max()]
    return VmOverview(
        vm,
        len(runs),
        int((~runs["ok"]).sum()),
        runs["started"].min().to_pydatetime(),
        runs["started"].max().to_pydatetime(),
        good["started"].max().to_pydatetime() if len(good) else None,
        int(newest["bytes_size"].sum()),
        int(rows["bytes_stored"].sum()),
    )
