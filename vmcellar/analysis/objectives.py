"""RPO and RTO: how old the newest point was at every moment, and how long drills took to bring a VM back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def exposure(frame: pd.DataFrame, now: pd.Timestamp | None) -> pd.DataFrame:
    """One row per good run of a VM: `run_id, vm, started, committed, until, worst`, by VM and time.

    From `committed` to `until` (the next commit, or `now`; open without one) the run's point was the newest one;
    `worst` is its age in seconds at the end of that time: the RPO that was reached. A point counts from its commit,
    its age from its instant.
    """
    runs = frame[frame["ok"]].drop_duplicates("run_id").sort_values(["vm", "started"], kind="stable")
    made = runs[["run_id", "vm", "started"]].astype({"vm": "object"}).reset_index(drop=True)
    made["committed"] = made["started"] + pd.to_timedelta(runs["seconds"].fillna(0).to_numpy(), unit="s")
    made["until"] = made.groupby("vm", sort=False)["committed"].shift(-1)
    if now is not None:
        made["until"] = made["until"].fillna(now)
    made["worst"] = (made["until"] - made["started"]).dt.total_seconds()
    return made


def rpo(
    frame: pd.DataFrame, targets: Mapping[str, float], now: pd.Timestamp, others: Iterable[str] = ()
) -> pd.DataFrame:
    """One row per VM of the frame and of `others`: `vm, runs, age, worst, typical, target, breaches, share`.

    `age` is that of the newest point now, `worst` the oldest that the newest point ever was, `typical` the median over
    runs (seconds). `target` is in seconds (NaN without one), `breaches` the times that it was exceeded, `share` the
    part of all time in which it was. Of a VM without a good run, `runs` is 0, and ages are NaN.
    """
    teeth = exposure(frame, now)
    target = teeth["vm"].map(dict(targets)).astype("float64")
    over = pd.to_timedelta(target.fillna(np.inf).clip(upper=1e9), unit="s") + teeth["started"]
    late = (teeth["until"] - over.where(over > teeth["committed"], teeth["committed"])).dt.total_seconds().clip(lower=0)
    teeth = teeth.assign(target=target, breach=late > 0, late=late.where(target.notna(), 0.0))
    teeth["length"] = (teeth["until"] - teeth["committed"]).dt.total_seconds()
    by_vm = teeth.groupby("vm", sort=True)
    table = by_vm.agg(
        runs=("started", "size"),
        age=("started", lambda values: (now - values.max()).total_seconds()),
        worst=("worst", "max"),
        typical=("worst", "median"),
        target=("target", "first"),
        breaches=("breach", "sum"),
    )
    table["share"] = by_vm["late"].sum() / by_vm["length"].sum()
    every = sorted({*(str(vm) for vm in frame["vm"].unique()), *others} | {*table.index})
    whole = table.reindex(pd.Index(every, name="vm")).fillna({"runs": 0, "breaches": 0})
    whole["target"] = whole.index.map(dict(targets)).astype("float64")
    return whole.astype({"runs": int, "breaches": int}).reset_index()


def beyond(table: pd.DataFrame) -> pd.Series:
    """How far each VM of `rpo` was from its target at worst (1: it was just met); without a good run there is no worse,
    without a target nothing is said (0).
    """
    return (table["worst"] / table["target"]).fillna(0.0).where(table["runs"] > 0, np.inf)


def rto(evidence: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """One row per VM with a point: `vm, bytes_size, drills, last_drill, measured, predicted` (seconds; NaN if unknown).

    Predicted is from the rate of all drills of all VMs: the median of seconds per byte, times the size of the VM's
    newest point. So a VM that was never drilled has a figure, too.
    """
    newest = points.sort_values("time").groupby("vm", sort=True).tail(1)[["vm", "bytes_size"]]
    drills = evidence[(evidence["kind"] == "drill") & evidence["ok"] & evidence["rto_seconds"].notna()]
    sized = drills.merge(points[["point", "bytes_size"]], on="point", how="inner")
    rate = float((sized["rto_seconds"] / sized["bytes_size"]).median()) if len(sized) else float("nan")
    last = drills.sort_values("time").groupby("vm").tail(1).set_index("vm")
    table = newest.reset_index(drop=True)
    table["drills"] = table["vm"].map(drills.groupby("vm").size()).fillna(0).astype(int)
    table["last_drill"] = table["vm"].map(last["time"])
    table["measured"] = table["vm"].map(last["rto_seconds"]).astype("float64")
    table["predicted"] = table["bytes_size"] * rate
    return table.sort_values("vm", ignore_index=True)
