"""What is wrong with the fleet at this moment, from the catalog, and of tiers: each by a key that stays the same.

Pure: the same catalog, policy and time give the same conditions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vmcellar.policy.governing import Promise, promised

if TYPE_CHECKING:
    from vmcellar.config.jobs import BackupJob

FREE_LEAST = 10 * 10**9
"""Bytes below which a tier counts as full."""

Row = Mapping[str, Any]
Severity = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that an operator must know; `key` names it for as long as it lasts, `job` the job that it is about, if
    there is one.
    """

    key: str
    severity: Severity
    text: str
    job: str = ""


def conditions(
    standing: Mapping[str, Sequence[Row]],
    jobs: Sequence[BackupJob],
    now: float,
    prove_within: float = math.inf,
) -> list[Condition]:
    """All of VMs that holds now, critical ones first; `now` in seconds.

    `standing` is `vmcellar.catalog.metrics.standing`. Of a VM that its job leaves out by name (`!NAME`) by now neither
    runs nor age are told. A VM without a good proof for `prove_within` seconds is unproven.
    """
    points = {(row["repository"], row["vm"]): row["verified"] for row in standing["points"]}
    found: list[Condition] = []
    for row in standing["newest"]:
        if any(job.name == row["job"] and job.leaves_out(row["vm"]) for job in jobs):
            continue
        promise = promised(jobs, row["vm"], row["job"] or "")
        found += _of_vm(row, points.get((row["repository"], row["vm"])), promise, now)
    found += [_of_uncovered(row) for row in standing["uncovered"] if row["uncovered"]]
    found += _doubted(standing["doubted"])
    found += _unproven(standing, now, prove_within)
    return worst_first([*found, *(_of_anomaly(row) for row in standing["anomalies"])])


def tier_conditions(free: Mapping[str, int | None], away: Mapping[str, str]) -> list[Condition]:
    """Of tiers by name: those that have too few bytes left (None: no end), and those that do not answer, and why."""
    full = [
        Condition(
            f"tier {name} full",
            "critical",
            f"tier {name}: {left / 1e9:.1f} GB are left; see `vmcellar capacity`, `vmcellar prune`",
        )
        for name, left in free.items()
        if left is not None and left < FREE_LEAST
    ]
    return full + [Condition(f"tier {name} away", "critical", f"tier {name}: {why}") for name, why in away.items()]


def worst_first(found: Iterable[Condition]) -> list[Condition]:
    """Critical ones first, then by key."""
    return sorted(found, key=lambda each: (each.severity != "critical", each.key))


def _unproven(standing: Mapping[str, Sequence[Row]], now: float, within: float) -> list[Condition]:
    """VMs of which no point was proven for too long, counted from their first verified point where none ever was."""
    proven: dict[tuple[Any, Any], float] = {}
    for row in standing["evidence"]:
        key = row["repository"], row["vm"]
        proven[key] = max(proven.get(key, 0.0), row["passed"] or 0.0)
    found = []
    for row in standing["points"]:
        last = proven.get((row["repository"], row["vm"]), 0.0)
        unproven = 0.0 if row["since"] is None else now - max(last, row["since"])
        if unproven <= within:
            continue
        vm, days = row["vm"], unproven / 86400
        said = f"its newest good proof is {days:.0f} days old"
        if not last:
            said = f"none of its points was proven in {days:.0f} days"
        asked = f"the policy asks {within / 86400:.0f}"
        text = f"{vm}: {said}, {asked}; `vmcellar prove {vm}@latest`, or more `prove_minutes:`"
        found.append(Condition(f"{vm}: unproven", "warning", text))
    return found


def _of_anomaly(row: Row) -> Condition:
    """It holds until a person has judged it."""
    text = f"{row['vm']}: {row['kind']}: {row['text']}; `vmcellar anomalies {row['vm']}` shows it and what was done"
    severity: Severity = "critical" if row["kind"] in ("ransomware", "stuck") else "warning"
    return Condition(f"{row['vm']}: {row['kind']}", severity, text)


def _doubted(rows: Sequence[Row]) -> list[Condition]:
    """One for each VM and kind of evidence; it holds until each of these points is proven again, or is gone."""
    points: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        points.setdefault((row["vm"], row["kind"]), []).append(row["point_id"])
    found = []
    for (vm, kind), bad in points.items():
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        point = bad[-1]
        text = f"{vm or 'unknown VM'}: the last {kind} of point {point}{more} failed; `vmcellar show {point}` says why"
        found.append(Condition(f"{vm}: {kind} failed", "critical", text))
    return found


def _of_uncovered(row: Row) -> Condition:
    vm, disks = row["vm"], "; ".join(row["uncovered"])
    text = f"{vm}: its newest point does not hold every disk: {disks}; `exclude: disk:TARGET` where that is meant"
    return Condition(f"{vm}: not covered", "critical", text)


def _of_vm(row: Row, verified: float | None, promise: Promise, now: float) -> list[Condition]:
    vm, rpo = row["vm"], promise.rpo
    found = []
    if verified is None:
        text = f"{vm}: there are runs, but no verified point: nothing could be restored"
        found.append(Condition(f"{vm}: no point", "critical", text))
    elif rpo is not None and now - verified > rpo:
        age = f"{(now - verified) / 3600:.1f} h"
        text = f"{vm}: its newest verified point is {age} old, the policy asks {rpo / 3600:.1f} h"
        found.append(Condition(f"{vm}: RPO", "critical", text, promise.job))
    if row["ok"] and row["error"]:
        text = f"{vm}: its newest backup has its point, but {row['error']}"
        found.append(Condition(f"{vm}: hook failed", "warning", text))
    if not row["ok"]:
        text = f"{vm}: its newest backup failed; the run in the Prefect UI, or `vmcellar backup {vm}`, says why"
        found.append(Condition(f"{vm}: backup failed", "warning", text))
    return found
