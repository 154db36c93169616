"""How many troubles of a known kind are found, how soon, and how many false alarms there are per VM and year."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vmcellar.analysis.anomalies import MERGE_HOURS, STATED, Anomaly, find
from vmcellar.analysis.sample import TROUBLES, Sample

DAY = 86400.0
HOUR = 3600.0
WARM_DAYS = 35
KIND_OF = {"ransomware": ("ransomware",), "stuck": ("stuck",), "slow": ("slow",), "freeze": ("freeze",)}


@dataclass(frozen=True, slots=True)
class Detection:
    """`troubles`: a row per VM in trouble, with the backups (and hours) it took to find it, infinite if it was not, and
    how many runs `failed` meanwhile; `alarms`: false alarms per VM and year by kind, `years` of VM watched.
    """

    troubles: pd.DataFrame
    alarms: dict[str, float]
    years: float

    def late(self, kind: str, hours: float) -> pd.DataFrame:
        """Those that took longer than so many hours to be found."""
        rows = self.troubles[self.troubles["trouble"] == kind]
        return rows.loc[rows["hours"] > hours, ["vm", "every", "backups", "hours", "failed"]]

    def found(self, kind: str, backups: float = np.inf, hours: float = np.inf) -> float:
        """Share found within so many backups and hours."""
        rows = self.troubles[self.troubles["trouble"] == kind]
        return float(((rows["backups"] <= backups) & (rows["hours"] <= hours)).mean())


def score_anomalies(sample: Sample, days: int) -> Detection:
    """Watch a sample of `days` days; VMs are watched once they have `WARM_DAYS` days of history."""
    start = sample.start.timestamp()
    found = find(sample.frame, start + days * DAY, days=days - WARM_DAYS)
    truth: dict[str, Any] = {str(told["vm"]): told for told in sample.truth.to_dict("records")}
    rows = []
    for kind in TROUBLES:
        for vm, told in truth.items():
            if told["trouble"] != kind:
                continue
            begin = start + told["trouble_hour"] * HOUR
            times = sorted(sample.frame.loc[sample.frame["vm"] == vm, "started"].unique())
            seconds = np.array([moment.timestamp() for moment in times])
            broken = sample.frame.loc[(sample.frame["vm"] == vm) & ~sample.frame["ok"], "started"].unique()
            failures = np.array([moment.timestamp() for moment in broken])
            hits = [one.at for one in found if one.vm == vm and one.kind in KIND_OF[kind] and one.last >= begin]
            first = min((max(hit, begin) for hit in hits), default=np.inf)
            backups = ((seconds >= begin) & (seconds <= first + 0.5 * HOUR)).sum() if np.isfinite(first) else np.inf
            rows.append(
                {
                    "vm": vm,
                    "class": told["class"],
                    "every": told["every"],
                    "trouble": kind,
                    "backups": backups,
                    "hours": (first - begin) / HOUR,
                    "failed": int(((failures >= begin) & (failures < first)).sum()),
                }
            )
    table = pd.DataFrame(rows, columns=["vm", "class", "every", "trouble", "backups", "hours", "failed"])
    years = sum(_watched_days(told, days) for told in truth.values()) / 365
    false = [one for one in found if _is_false(one, truth[one.vm], start)]
    return Detection(table, {kind: sum(one.kind == kind for one in false) / max(years, 1e-9) for kind in STATED}, years)


def _watched_days(told: dict[str, Any], days: int) -> float:
    return float(max(min(told["to_hour"] / 24, days) - (told["from_hour"] / 24 + WARM_DAYS), 0.0))


def _is_false(one: Anomaly, told: dict[str, Any], start: float) -> bool:
    """Whether nothing happened to the VM that the anomaly could mean: neither trouble nor a level shift."""
    for begin, hours in ((told["trouble_hour"], told["trouble_hours"]), (told["shift_hour"], 24 * 14)):
        first = start + begin * HOUR
        if begin >= 0 and one.last >= first - 24 * HOUR and one.at <= first + (hours + MERGE_HOURS + 48) * HOUR:
            return False
    return True
