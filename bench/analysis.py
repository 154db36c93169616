"""`./run bench analysis`: 1,000 VMs with a year of hourly runs; with --proof, how good it all is on held-out samples.

The scale run writes its history as Parquet in one process, then reads and analyses it in another, whose time and peak
memory are shown step by step; with --catalog it writes a catalog, and does what the flows do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench import analysis_catalog, analysis_losers
from bench.analysis_anomalies import score_anomalies
from bench.analysis_forecast import in_zone, score_forecasts
from bench.analysis_more import alike, score_fill, score_next_runs
from bench.analysis_schedules import compare
from vmcellar.analysis.advise import advise
from vmcellar.analysis.anomalies import find
from vmcellar.analysis.exports import read_history
from vmcellar.analysis.fill import fill_of
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.history import conform
from vmcellar.analysis.judging import Host, Need
from vmcellar.analysis.loads import current_starts, loads_of
from vmcellar.analysis.next_run import next_runs
from vmcellar.analysis.quality import quarantine
from vmcellar.analysis.sample import CLASSES, FRESH, HOLDOUT, SEASONAL, TROUBLES, TUNING, Settings, generate
from vmcellar.cli.historyframe import WEEKS

VMS_AT_ONCE = 100
ESTATES, LUCKS = 8, 5


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="bench analysis", description=__doc__)
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--proof", action="store_true", help="figures on the held-out samples instead of the scale run")
    parser.add_argument("--catalog", action="store_true", help="the flows' tasks, on a catalog in SQLite")
    samples = {"tuning": TUNING, "holdout": HOLDOUT, "fresh": FRESH}
    parser.add_argument("--sample", choices=samples, default="holdout", help="with --proof: on which samples")
    parser.add_argument("--seed", type=int, help="with --proof: another seed for samples of that kind")
    chosen = parser.parse_args()
    if chosen.proof:
        base = samples[chosen.sample]
        prove(replace(base, seed=base.seed if chosen.seed is None else chosen.seed))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        for work in (analysis_catalog.write, analyse_catalog) if chosen.catalog else (write, analyse):
            process = context.Process(target=work, args=(Path(folder), chosen.vms, chosen.days))
            process.start()
            process.join()
            if process.exitcode:
                return 1
    return 0


def write(folder: Path, vms: int, days: int) -> None:
    """Write an hourly history of so many VMs as one Parquet file."""
    begun = time.monotonic()
    writer = None
    rows = 0
    for number in range(0, vms, VMS_AT_ONCE):
        settings = replace(TUNING, seed=number, vms=min(VMS_AT_ONCE, vms - number), days=days, every_hours=(1,))
        frame = generate(replace(settings, newcomers=0.0, leavers=0.0)).frame
        frame = frame[frame["disk"] == "vda"].assign(vm="set" + str(number) + "-" + frame["vm"].astype(str))
        table = pa.Table.from_pandas(conform(frame), preserve_index=False)
        writer = writer or pq.ParquetWriter(folder / "history.parquet", table.schema)
        writer.write_table(table)
        rows += table.num_rows
    assert writer is not None
    writer.close()
    print(f"{rows:,} rows of {vms} VMs written in {time.monotonic() - begun:.0f} s")


@dataclass(slots=True)
class Steps:
    """Prints what each step took, and the peak of memory so far."""

    begun: float

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do it and tell."""
        before = time.monotonic()
        done = work()
        print(f"{name:34s} {time.monotonic() - before:7.1f} s   peak {peak():.2f} GiB", flush=True)
        return done


def peak() -> float:
    """Most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def analyse(folder: Path, vms: int, days: int) -> None:
    """Everything that the commands do, on the file."""
    del days
    steps = Steps(time.monotonic())
    frame = steps.step("read", lambda: read_history(folder / "history.parquet", WEEKS))
    now = frame["started"].max().timestamp()
    frame = steps.step("quality", lambda: quarantine(frame, now)[0])
    outlook = steps.step("forecast", lambda: forecast_change(frame, now))
    runs = steps.step("next runs", lambda: next_runs(frame, outlook))
    found = steps.step("anomalies of a week", lambda: find(frame, now, 7))
    fill = steps.step("date to full", lambda: fill_of(frame, "hot", 1e15, now))
    current = current_starts(frame, now)
    needs = [Need(vm, f"kvm{number % 20}", 4 * 3600.0) for number, vm in enumerate(current)]
    hosts = [Host(f"kvm{number}") for number in range(20)]
    advice = steps.step("advice", lambda: advise(needs, hosts, loads_of(frame, outlook), current))
    print(
        f"{len(frame):,} rows of the last {WEEKS} weeks, {len(outlook.forecasts)} forecasts, {len(runs)} next runs, "
        f"{len(found)} anomalies, {len(advice.changes)} schedules, {fill.per_day / 2**40:.2f} TiB a day"
    )
    print(f"{vms} VMs: {time.monotonic() - steps.begun:.0f} s, {peak():.2f} GiB")


def analyse_catalog(folder: Path, vms: int, days: int) -> None:
    """What the flows do, on the catalog."""
    steps = Steps(time.monotonic())
    analysis_catalog.analyse(folder, steps.step)
    print(f"{vms} VMs over {days} days: {time.monotonic() - steps.begun:.0f} s, {peak():.2f} GiB")


def prove(base: Settings) -> None:
    """Print the figures of docs/analysis.md."""
    with pd.option_context("display.width", 160, "display.max_columns", 20, "display.precision", 3):
        _prove_forecasts(base)
        _prove_fill(base)
        _prove_anomalies(base)
        _prove_schedules(base)


def _prove_forecasts(base: Settings) -> None:
    sample = generate(replace(base, vms=360, days=200))
    score = score_forecasts(sample, (110, 140, 170))
    print(f"forecasts, seed {base.seed}, {len(score.table)} scored, {score.refused} refused")
    print(score.by_class())
    for kind in CLASSES:
        print(f"{kind:10s} MASE {score.mase(kind):.3f}   ninth decile {score.worst(kind):.2f}")
    print(f"inside 80 %: {score.coverage(80):.3f}, inside 95 %: {score.coverage(95):.3f}\n")
    print("whether series lose against the baseline, over 26 weeks that follow each other")
    analysis_losers.show(analysis_losers.weeks_of(replace(base, vms=180, days=300), range(110, 291, 7)))
    _prove_clocks(base)
    print(score_next_runs(generate(replace(base, vms=200, days=150)), (100, 110, 120, 133)), "\n")
    several = generate(replace(base, vms=500, days=150, seed=base.seed + 1))
    for name, one in (("independently", several), ("alike", alike(several))):
        print(f"next runs of VMs with two disks, which change {name}")
        print(score_next_runs(one, (100, 110, 120, 133), least_disks=2), "\n")


def _prove_clocks(base: Settings) -> None:
    """In the four weeks after summer time began, of hourly and six-hourly VMs that live by a clock in Berlin."""
    zone = ZoneInfo("Europe/Berlin")
    quiet = replace(base, start="2026-01-05", vms=180, days=130, every_hours=(1, 6), newcomers=0.0, leavers=0.0)
    sample = in_zone(generate(quiet), zone)
    for name, known in (("by UTC", UTC), ("by the clock", zone)):
        score = score_forecasts(sample, (84, 88, 95, 102, 109), known)
        errors = ", ".join(f"{kind} {score.mase(kind):.2f}" for kind in SEASONAL)
        print(f"after clocks changed, {name}: MASE {errors}; {score.coverage(80):.3f} / {score.coverage(95):.3f}")


def _prove_fill(base: Settings) -> None:
    for days in (200, 150, 120):
        _show_fill(f"{days} days of history", replace(base, vms=60, days=days, newcomers=0.0), 200)
    _show_fill(f"newcomers {base.newcomers:.0%}", replace(base, vms=60, days=200), 100)
    for kind in CLASSES:
        _show_fill(f"{kind} alone", replace(base, vms=60, days=200, newcomers=0.0, classes=(kind,)), 60)


def _show_fill(name: str, settings: Settings, tiers: int) -> None:
    found = score_fill(settings, tiers)
    shares = found[["within10", "in80", "in95"]].mean().round(3).to_dict()
    late = (found["said"] - 30) / 30
    off = late.abs()
    errors = f"{off.median():.1%}, mean {off.mean():.1%}, 90th percentile {off.quantile(0.9):.1%}"
    ends = ", ".join(f"{late.quantile(share):+.1%}" for share in (0.05, 0.5, 0.95))
    errors += f"; late by {ends}, worst {off.max():.1%}"
    print(f"full in 30 days, {name}, {tiers} tiers: median error {errors}, {shares}")


def _prove_anomalies(base: Settings) -> None:
    for trouble in (0.5, 0.0):
        sample = generate(replace(base, vms=1500, days=130, trouble_share=trouble))
        found = score_anomalies(sample, 130)
        print(
            f"\nanomalies, {trouble:.0%} of VMs in trouble, {found.years:.0f} VM years; false alarms per VM and year:"
        )
        print({kind: round(rate, 3) for kind, rate in found.alarms.items()})
        for kind in TROUBLES if trouble else ():
            count = int((found.troubles["trouble"] == kind).sum())
            print(
                f"{kind:10s} {count} cases, within two backups {found.found(kind, backups=2):.3f}, "
                f"within a day and a run {found.found(kind, hours=26):.3f}, ever {found.found(kind, hours=1e9):.3f}"
            )
            if kind == "stuck":
                print(f"later than that:\n{found.late(kind, 26)}")


def _prove_schedules(base: Settings) -> None:
    settings = replace(base, vms=100, days=112, newcomers=0.0, leavers=0.0)
    for budget, even in ((1.0, True), (1.05, True), (1.1, True), (1.0, False)):
        print(
            f"\nschedules, {ESTATES} estates of 100 VMs over four weeks, {LUCKS} draws of luck, budget "
            f"{budget}{', even' if even else ''}"
        )
        found = compare(settings, ESTATES, budget, even=even, lucks=LUCKS)
        print(found.table.round(1))
        print(found.apart.round(4).to_string(index=False))


if __name__ == "__main__":
    raise SystemExit(main())
