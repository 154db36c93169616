"""What a VM's backups ask of a host: change by minute of the day, seconds per run and byte, and how often runs fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vmcellar.analysis.grid import HOUR
from vmcellar.analysis.next_run import runs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vmcellar.analysis.forecast import Forecast, Outlook
    from vmcellar.analysis.next_run import Runs

    Floats = NDArray[np.float64]

DAY_MINUTES = 1440
UNKNOWN_SPREAD = 0.3
DAILY = 36 * HOUR
SILENT = 3.0
"""Usual intervals without a good run after which a VM counts as not backed up any more."""
PRIOR_RUNS, PRIOR_FAILURES = 50.0, 1.0
"""How often a run fails is drawn towards 2 % while a VM has few runs."""


@dataclass(frozen=True, slots=True)
class Load:
    """One VM. `curve[m]` is the bytes changed from midnight UTC to minute m of a mean day (1441 values, all disks);
    a run takes `rest` + `per_byte` * bytes seconds, times a factor whose logarithm spreads by `spread`; a run fails
    with probability `fails`. `forecast` is False where the curve is only the mean of the last runs. `share` are the
    bytes stored of a byte changed.
    """

    vm: str
    curve: Floats
    rest: float
    per_byte: float
    spread: float
    fails: float
    forecast: bool
    share: float = 1.0

    @property
    def writes(self) -> float:
        """Bytes a second that a run writes while it works, as its last runs did."""
        return self.share / self.per_byte if self.per_byte > 0 else 0.0

    @property
    def day_bytes(self) -> float:
        """Bytes changed on a mean day."""
        return float(self.curve[-1])

    def upto(self, minutes: Floats) -> Floats:
        """Bytes changed from midnight of day 0 to these minutes, which may lie days ahead."""
        days, rest = np.divmod(minutes, DAY_MINUTES)
        within = np.interp(rest, np.arange(DAY_MINUTES + 1), self.curve)
        return np.asarray(days * self.day_bytes + within, dtype=np.float64)

    def seconds(self, changed: Floats) -> Floats:
        """How long runs with this much change usually take."""
        return np.asarray(self.rest + self.per_byte * changed, dtype=np.float64)

    def day_seconds(self, runs: int) -> float:
        """Seconds of work in a day of so many runs; every byte is read once, however many runs there are."""
        return runs * self.rest + self.per_byte * self.day_bytes


def loads_of(frame: pd.DataFrame, outlook: Outlook) -> dict[str, Load]:
    """The load of every VM that has a good incremental run, from its forecast or, failing that, its last runs."""
    refused = {one.vm for one in outlook.refusals}
    disks: dict[str, list[Forecast]] = {}
    for forecast in outlook.forecasts:
        disks.setdefault(forecast.vm, []).append(forecast)
    fails = _failures(frame)
    found = {}
    last = list(runs_of(frame, outlook.now, most=200))
    usual_rest = float(np.median([runs.throughput()[0] for runs in last])) if last else 0.0
    for runs in last:
        known = runs.vm in disks and runs.vm not in refused
        curve = _curve(disks[runs.vm]) if known else _flat_curve(runs)
        rest, per_byte = _throughput(runs, usual_rest)
        off = runs.off_line()
        spread = max(1.4826 * float(np.median(np.abs(off - np.median(off)))), 0.05) if len(off) else UNKNOWN_SPREAD
        share = float(runs.stored.sum() / max(runs.changed.sum(), 1.0))
        found[runs.vm] = Load(runs.vm, curve, rest, per_byte, spread, fails[runs.vm], known, share)
    return found


def current_starts(frame: pd.DataFrame, now: float) -> dict[str, tuple[int, ...]]:
    """When every VM's runs start today, as the history shows it: its usual interval, in phase with its last run.

    Left out is who is backed up less than daily, which no starts of a day can say, and who is not backed up any more: a
    VM that is gone would have its share of the work for ever.
    """
    found = {}
    for runs in runs_of(frame, now):
        if runs.cadence > DAILY or now - runs.last > max(SILENT * runs.cadence, DAILY):
            continue
        count = int(np.clip(round(86400 / runs.cadence), 1, 96))
        last = round(runs.last / 60) % DAY_MINUTES
        found[runs.vm] = tuple(sorted({round(last + k * DAY_MINUTES / count) % DAY_MINUTES for k in range(count)}))
    return found


def _throughput(runs: Runs, usual_rest: float) -> tuple[float, float]:
    """Seconds at rest and per byte. Runs that are all alike cannot tell the two apart, so what a run takes at rest is
    held to half to twice of what is usual among all VMs.
    """
    rest, per_byte = runs.throughput()
    held = float(np.clip(rest, usual_rest / 2, usual_rest * 2))
    changed, seconds = runs.timed()
    if held == rest or not changed.any():
        return rest, per_byte
    return held, max(float(seconds.mean()) - held, 0.0) / float(changed.mean())


def _failures(frame: pd.DataFrame) -> dict[str, float]:
    """Probability that a run fails, by VM."""
    by_run = frame.groupby(["vm", "started"], observed=True, sort=False)["ok"].min()
    by_vm = by_run.groupby(level="vm", observed=True)
    runs, good = by_vm.size(), by_vm.sum()
    rate = (runs - good + PRIOR_FAILURES) / (runs + PRIOR_RUNS)
    return {str(vm): float(value) for vm, value in rate.items()}


def _curve(disks: Sequence[Forecast]) -> Floats:
    """Cumulative change over a mean day of the two weeks, at each minute."""
    total = np.zeros(DAY_MINUTES)
    for one in disks:
        edges = np.append(one.starts, one.starts[-1] + one.step * HOUR) / 60
        minutes = np.arange(np.ceil(edges[0]), np.floor(edges[-1]) + 1)
        cumulative = np.interp(minutes, edges, np.concatenate(([0.0], np.cumsum(one.mean))))
        of_day = (minutes[:-1] % DAY_MINUTES).astype(np.int64)
        sums = np.bincount(of_day, np.diff(cumulative), DAY_MINUTES)
        total += sums / np.maximum(np.bincount(of_day, minlength=DAY_MINUTES), 1)
    return np.concatenate(([0.0], np.cumsum(total)))


def _flat_curve(runs: Runs) -> Floats:
    per_day = float(np.mean(runs.changed[-30:]) * 86400 / runs.cadence)
    return np.linspace(0.0, per_day, DAY_MINUTES + 1)
