"""Which VM to back up how often and when: the least expected loss and load within policy, windows and limits.

How it decides, so that a person can follow:

1. For each VM and each number of runs a day, the **expected breaches** of its RPO follow from the gaps between runs,
   how long runs take and how often they fail; the **exposure** is the change that a loss would cost on average.
2. Each VM gets at least the fewest runs that keep its RPO while nothing fails, and one a day. What is left of the work
   that today's schedule costs goes, step by step, to where a second of work prevents most (the lower convex hull of
   each VM's choices, all hulls merged by slope: the greedy of the multiple-choice knapsack).
3. Starts are laid on the minutes of a day, the largest VMs first, each where its host is least busy, inside the VM's
   window, then moved again once all others lie.
4. What would gain little stays as it is (`HYSTERESIS`), so that advice does not flap.

Nothing is applied here. Times are minutes of a UTC day; incremental runs only, as every point is a full one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vmcellar.analysis.judging import Host, Judgement, Need, Starts, judge, open_time, spread_runs
from vmcellar.analysis.loads import DAY_MINUTES, Load
from vmcellar.analysis.placing import Grid, Placed, durations, place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RUNS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 18, 20, 22, 24, 26, 28, 32, 36, 42, 48, 60, 72, 96)
HYSTERESIS = 0.1
LATE_WEIGHT = 3.0
EXPOSURE_WEIGHT = 0.001
"""Being over the RPO for as long as the RPO itself weighs so many breaches; exposure (as a share of a day's change)
only decides between equals.
"""
BUDGET = 1.05
"""With so much of today's work no class of RPO needs to pay for another; with as much as today one would."""
ROUNDS = 8
GROWS = 2.0
LEAST_WORSE = 0.005
"""How often weights may grow, how much at a time, and what a class may have more of a day without being worse off."""


@dataclass(frozen=True, slots=True)
class Change:
    """A VM's schedule before and after, as starts in minutes of the day, with what both mean and why."""

    vm: str
    host: str
    before: Starts
    after: Starts
    was: Judgement
    will: Judgement
    why: str


@dataclass(frozen=True, slots=True)
class Advice:
    """All changes (also the VMs that stay as they are), what policy asks and cannot be had, and peaks by host: the most
    runs at once, before and after.
    """

    changes: tuple[Change, ...]
    conflicts: tuple[str, ...]
    peaks: Mapping[str, tuple[int, int]]

    def total(self, after: bool) -> Judgement:
        """Sums over all VMs."""
        parts = [one.will if after else one.was for one in self.changes]
        return Judgement(
            *(sum(getattr(part, name) for part in parts) for name in ("breaches", "late_hours", "exposure", "seconds"))
        )


@dataclass(slots=True)
class _Weights:
    """What a breach and the time over the RPO, as a share of it, weigh in a class of VMs."""

    breaches: float = 1.0
    late_hours: float = LATE_WEIGHT


class _Step(NamedTuple):
    """More runs for a VM: `slope` is how much cost each further second of work takes away (below zero)."""

    slope: float
    vm: str
    before: int
    after: int
    seconds: float


def advise(
    needs: Sequence[Need],
    hosts: Sequence[Host],
    loads: Mapping[str, Load],
    current: Mapping[str, Starts],
    budget: float = BUDGET,
    *,
    even: bool = True,
    own: Mapping[str, int] | None = None,
) -> Advice:
    """Advice for all VMs of `needs`; those without a load or a current schedule keep what they have.

    `budget` is the work that may be done, as a share of what today's schedules cost. `even`: no class of RPO is served
    worse than today, so that what VMs of one gain is not paid by those of another. `own` are the runs a day that VMs
    had before any advice: they count as today's then, so that advice upon advice neither grows nor flaps.
    """
    names = {host.name for host in hosts}
    known = [need for need in needs if need.vm in loads and current.get(need.vm) and need.host in names]
    was = {need.vm: judge(loads[need.vm], current[need.vm], need.rpo) for need in known}
    conflicts = [f"{need.vm}: no history, schedule or host to start from" for need in needs if need not in known]
    base = {need.vm: _before_advice(need, loads[need.vm], was[need.vm], own or {}) for need in known}
    left = budget * sum(judgement.seconds for judgement in base.values())
    counts, fewest = _runs_of_all(known, loads, current, (was, base), left, conflicts, even=even)
    starts: dict[str, Starts] = {}
    peaks = {}
    for host in hosts:
        members = [need for need in known if need.host == host.name]
        placed = _lay_out(members, host, loads, current, counts)
        if placed.grid.peak() > host.concurrent:
            placed = _lay_out(members, host, loads, current, fewest)
        starts.update(placed.starts)
        peaks[host.name] = (_peak_of(current, members, host, loads), placed.grid.peak())
        conflicts += _overload(placed, host)
    changes = []
    for need in known:
        will = judge(loads[need.vm], starts[need.vm], need.rpo)
        why = _why(was[need.vm], will, current[need.vm], starts[need.vm])
        changes.append(Change(need.vm, need.host, current[need.vm], starts[need.vm], was[need.vm], will, why))
    return Advice(tuple(changes), tuple(conflicts), peaks)


def _before_advice(need: Need, load: Load, was: Judgement, own: Mapping[str, int]) -> Judgement:
    """What the schedule meant that a VM had before any advice; today's, where there was none."""
    return judge(load, spread_runs(own[need.vm], need), need.rpo) if need.vm in own else was


def _cost_of(judgement: Judgement, need: Need, load: Load, weight: _Weights) -> float:
    """What is to be made small: breaches a day, time over the RPO, and a little of the exposure."""
    late = weight.breaches * judgement.breaches + weight.late_hours * judgement.late_hours * 3600 / (need.rpo or np.inf)
    return late + EXPOSURE_WEIGHT * judgement.exposure / max(load.day_bytes, 1.0)


def _runs_of_all(
    needs: Sequence[Need],
    loads: Mapping[str, Load],
    current: Mapping[str, Starts],
    today: tuple[Mapping[str, Judgement], Mapping[str, Judgement]],
    left: float,
    conflicts: list[str],
    *,
    even: bool,
) -> tuple[dict[str, int], dict[str, int]]:
    """How many runs a day each VM gets for `left` seconds of work, and how few its policy allows. `today` is what the
    schedules mean that VMs have, and that they had before any advice.

    VMs of one RPO are a class. If all are to be served evenly and a class would be served worse than today, in hours
    or in breaches, its weight grows and all is shared out anew.
    """
    was = today[0]
    fewest: dict[str, int] = {}
    ways: dict[str, dict[int, Judgement]] = {}
    for need in needs:
        if need.fixed:
            fewest[need.vm] = len(current[need.vm])
            left -= was[need.vm].seconds
            continue
        load = loads[need.vm]
        tried = {runs: judge(load, spread_runs(runs, need), need.rpo) for runs in _choices(need, load)}
        fewest[need.vm] = least = _least_runs(need, tried, conflicts)
        left -= tried[least].seconds
        ways[need.vm] = {runs: one for runs, one in tried.items() if runs >= least}
    free = [need for need in needs if not need.fixed]
    weights = {need.rpo: _Weights() for need in free}
    counts = fewest
    for _ in range(ROUNDS if even else 1):
        counts = {**fewest, **_share_out(free, loads, current, was, ways, weights, left)}
        worse = [rpo for rpo in weights if _serves_worse(rpo, free, today, ways, counts, weights)]
        if not worse:
            break
    return counts, fewest


def _share_out(
    needs: Sequence[Need],
    loads: Mapping[str, Load],
    current: Mapping[str, Starts],
    was: Mapping[str, Judgement],
    ways: Mapping[str, Mapping[int, Judgement]],
    weights: Mapping[float | None, _Weights],
    left: float,
) -> dict[str, int]:
    """Runs a day of each VM: from the fewest on, `left` seconds of work go where a second prevents most."""
    counts = {need.vm: min(ways[need.vm]) for need in needs}
    steps: list[_Step] = []
    for need in needs:
        load, weight = loads[need.vm], weights[need.rpo]
        steps += _hull(
            need.vm, [(one.seconds, _cost_of(one, need, load, weight), runs) for runs, one in ways[need.vm].items()]
        )
    for step in sorted(steps):
        if step.seconds <= left and counts[step.vm] == step.before:
            counts[step.vm] = step.after
            left -= step.seconds
    for need in needs:
        if _not_worth_it(need, loads[need.vm], current[need.vm], counts[need.vm], was[need.vm]):
            counts[need.vm] = len(current[need.vm])
    return counts


def _serves_worse(
    rpo: float | None,
    needs: Sequence[Need],
    today: tuple[Mapping[str, Judgement], Mapping[str, Judgement]],
    ways: Mapping[str, Mapping[int, Judgement]],
    counts: Mapping[str, int],
    weights: Mapping[float | None, _Weights],
) -> bool:
    """Whether a class has more hours over its RPO, or more breaches, than today; its weights grow where it has."""
    was, base = today
    members = [need.vm for need in needs if need.rpo == rpo]
    will = [ways[vm].get(counts[vm], was[vm]) for vm in members]
    weight, found = weights[rpo], False
    for name in ("late_hours", "breaches"):
        before = sum(getattr(base[vm], name) for vm in members)
        if sum(getattr(one, name) for one in will) > before * (1 + HYSTERESIS) + LEAST_WORSE:
            setattr(weight, name, getattr(weight, name) * GROWS)
            found = True
    return found


def _choices(need: Need, load: Load) -> list[int]:
    """Numbers of runs that leave room for each run: half of the open time is work at most, in a window one an hour."""
    _, length = open_time(need)
    most = RUNS[-1] if need.window is None else max(length // 60, 1)
    return [runs for runs in RUNS if runs == 1 or (runs <= most and load.day_seconds(runs) < 0.5 * length * 60)]


def _least_runs(need: Need, tried: Mapping[int, Judgement], conflicts: list[str]) -> int:
    """The fewest runs a day that keep the RPO as long as nothing fails and runs take as long as usual."""
    if need.rpo is None:
        return min(tried)
    kept = [runs for runs, one in tried.items() if one.breaches < 0.5]
    if kept:
        return min(kept)
    conflicts.append(
        f"{need.vm}: its RPO of {need.rpo / 3600:g} h cannot be kept inside its window or with runs this long"
    )
    return min(tried, key=lambda runs: (tried[runs].breaches, runs))


def _hull(vm: str, points: list[tuple[float, float, int]]) -> list[_Step]:
    """Steps along the lower convex hull of (seconds, cost, runs)."""
    hull: list[tuple[float, float, int]] = []
    for point in sorted(points):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) >= 2 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return [_Step(_slope(a, b), vm, a[2], b[2], b[0] - a[0]) for a, b in pairwise(hull)]


def _slope(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    return (b[1] - a[1]) / max(b[0] - a[0], 1e-9)


def _not_worth_it(need: Need, load: Load, current: Starts, runs: int, was: Judgement) -> bool:
    """Whether another number of runs is within `HYSTERESIS` of today's and gains less than that."""
    if abs(runs - len(current)) > HYSTERESIS * len(current):
        return False
    will = judge(load, spread_runs(runs, need), need.rpo)
    weight = _Weights()
    return _cost_of(will, need, load, weight) > (1 - HYSTERESIS) * _cost_of(was, need, load, weight)


def _lay_out(
    needs: Sequence[Need],
    host: Host,
    loads: Mapping[str, Load],
    current: Mapping[str, Starts],
    counts: Mapping[str, int],
) -> Placed:
    """Starts of a host's VMs."""
    options = {need.vm: _options(need, loads[need.vm], counts[need.vm], current[need.vm]) for need in needs}
    return place({need.vm: loads[need.vm] for need in needs}, options, host.concurrent)


def _peak_of(starts: Mapping[str, Starts], needs: Sequence[Need], host: Host, loads: Mapping[str, Load]) -> int:
    grid = Grid(host.concurrent)
    for need in needs:
        grid.add(starts[need.vm], loads[need.vm])
    return grid.peak()


def _overload(placed: Placed, host: Host) -> list[str]:
    """What a host cannot do, in words."""
    over = int((placed.grid.busy > host.concurrent + 1e-9).sum())
    if over == 0:
        return []
    work = placed.grid.busy.sum() / 60
    return [
        f"{host.name}: {work:.1f} h of work a day; for {over} minutes more than {host.concurrent} runs are due at once"
    ]


def _options(need: Need, load: Load, runs: int, current: Starts) -> list[Starts]:
    """The ways to lay so many runs, today's first when it has as many; in a window, those that end inside it.

    Without a window runs are even over the day. In a window they are even from any start in it to its end, so that the
    long first run, which carries the change of the day, need not be at its opening.
    """
    if need.fixed:
        return [current]
    begin, length = open_time(need)
    if need.window is None:
        gap = length / runs
        found = [spread_runs(runs, need, first) for first in range(0, max(int(gap), 1), 1 if gap <= 120 else 5)]
    else:
        later = range(0, length, 1 if length <= 120 else 5)
        found = [
            tuple(sorted({round(begin + at + k * (length - at) / runs) % DAY_MINUTES for k in range(runs)}))
            for at in later
        ]
        room = [_room(starts, load, begin, length) for starts in found]
        found = [starts for starts, left in zip(found, room, strict=True) if left >= min(0.0, max(room))]
    inside = all((start - begin) % DAY_MINUTES < length for start in current)
    return [current, *found] if len(current) == runs and inside else found


def _room(starts: Starts, load: Load, begin: int, length: int) -> float:
    """Minutes between the end of the last run and the end of the window; below zero: it runs over."""
    ordered = sorted(starts)
    took = durations(ordered, load)
    return min(length - (start - begin) % DAY_MINUTES - float(run) for start, run in zip(ordered, took, strict=True))


def _why(was: Judgement, will: Judgement, before: Starts, after: Starts) -> str:
    if before == after:
        return "stays"
    said = []
    if len(after) != len(before):
        said.append(f"{len(after)} runs a day, not {len(before)}")
    if abs(will.breaches - was.breaches) * 365 >= 0.5:
        said.append(f"{will.breaches * 365:.0f} RPO breaches expected a year, not {was.breaches * 365:.0f}")
    if abs(will.seconds - was.seconds) >= 1:
        more = "more" if will.seconds > was.seconds else "less"
        said.append(f"{abs(will.seconds - was.seconds):.0f} s {more} work a day")
    return "; ".join(said) or "moved to where its host is less busy"
