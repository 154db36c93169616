"""What to look at first: the VMs that are worst off, the disks that change most, the strongest incident."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.analysis.objectives import beyond

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from vmcellar.analysis.anomalies import Anomaly
    from vmcellar.analysis.forecast import Forecast, Outlook

DAY = 86400.0
APART_DAYS = 7.0
"""Anomalies of one disk that lie closer together belong to one incident."""


@dataclass(frozen=True, slots=True)
class Incident:
    """The anomalies of one disk that belong together, strongest first; `at` is when the first one began."""

    vm: str
    disk: str
    at: float
    together: tuple[Anomaly, ...]


def worst_first(reached: pd.DataFrame, most: int = 5) -> list[str]:
    """VMs of `objectives.rpo` by how far their worst age is beyond the target, those without a good run first; those
    without a target come last.
    """
    order = beyond(reached).sort_values(ascending=False, kind="stable").index
    return [str(vm) for vm in reached.loc[order, "vm"]][:most]


def most_often(frame: pd.DataFrame, most: int = 2) -> list[str]:
    """The VMs that are backed up most often, of these the ones that change most."""
    good = frame[frame["ok"] & (frame["kind"] == "incremental")]
    by_vm = good.groupby(good["vm"].astype("object")).agg(runs=("run_id", "nunique"), changed=("bytes_changed", "sum"))
    often = by_vm[by_vm["runs"] > 0.5 * by_vm["runs"].max()].sort_values("changed", ascending=False)
    return [str(vm) for vm in often.index[:most]]


def biggest(outlook: Outlook, most: int = 3) -> list[Forecast]:
    """The forecasts of the disks that will change most."""
    return sorted(outlook.forecasts, key=lambda one: -float(one.mean.sum()))[:most]


def strongest(found: Sequence[Anomaly]) -> Incident | None:
    """The incident around the anomaly with the highest score, ransomware before all else; None when there is none."""
    if not found:
        return None
    top = max(found, key=lambda one: (one.kind == "ransomware", one.score))
    near = [
        one for one in found if (one.vm, one.disk) == (top.vm, top.disk) and abs(one.at - top.at) <= APART_DAYS * DAY
    ]
    return Incident(top.vm, top.disk, min(one.at for one in near), tuple(sorted(near, key=lambda one: -one.score)))
