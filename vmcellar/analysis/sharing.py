"""Sharing out the work of a day: how many runs each VM gets, within what tiers can hold and take.

Each VM has the fewest runs that its policy allows. Further ones are steps along the lower convex hull of its choices;
all hulls are merged by slope, and a step is taken when the work that is left and every tier's ceiling have room for it
(the greedy for the multiple-choice knapsack; a solver would gain less than the forecast's own error). What is made
small is one sum: the breaches expected a day, the time over the RPO, a little of the exposure, and the money that runs
cost, in breaches: as many as that money is worth (`advise.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmcellar.analysis.judging import Judgement, Need
    from vmcellar.analysis.loads import Load

HYSTERESIS = 0.1
LATE_WEIGHT = 3.0
EXPOSURE_WEIGHT = 0.001
"""Being over the RPO for as long as the RPO itself weighs so many breaches; exposure (as a share of a day's change)
only decides between equals.
"""
ROUNDS = 8
GROWS = 2.0
LEAST_WORSE = 0.005
"""How often weights may grow, how much at a time, and what a class may have more of a day without being worse off."""


@dataclass(frozen=True, slots=True)
class Way:
    """So many runs a day: what they mean, the money that they cost more than the fewest, in breaches, and how much of
    each ceiling they take.
    """

    will: Judgement
    spent: float = 0.0
    takes: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Free:
    """A VM whose number of runs is to be chosen. `ways` are by runs a day, from the fewest that policy allows on;
    `today` is how many it has (`now` is what they mean, also where that is less than the fewest), `base` what it meant
    before any advice.
    """

    need: Need
    load: Load
    today: int
    now: Way
    base: Judgement
    ways: Mapping[int, Way]

    @property
    def fewest(self) -> int:
        """The fewest runs a day."""
        return min(self.ways)

    def way(self, runs: int) -> Way:
        """What so many runs mean."""
        return self.ways.get(runs, self.now)


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


class Scales:
    """What is left of the work and of each ceiling."""

    def __init__(self, seconds: float, ceilings: Sequence[float]) -> None:
        """`ceilings` may be infinite."""
        self._left = [seconds, *ceilings]
        self._worth = [seconds / left if 0 < left < inf else 0.0 for left in ceilings]

    def put(self, before: Way, after: Way, *, work: bool = True) -> bool:
        """Exchange one way for another, if everything has room for it; without `work`, whatever work that is."""
        more = [b - a for a, b in zip(_takes(before), _takes(after), strict=True)]
        fits = [each <= left or each <= 0 for each, left in zip(more, self._left, strict=True)]
        if not all(fits[0 if work else 1 :]):
            return False
        self._left = [left - each for left, each in zip(self._left, more, strict=True)]
        return True

    def weigh(self, way: Way) -> float:
        """Its work, and what it takes of the ceilings as if all of each were as dear as all of the work."""
        shares = zip(way.takes, self._worth, strict=True)
        return way.will.seconds + sum(takes * worth for takes, worth in shares if worth)


def _takes(way: Way) -> tuple[float, ...]:
    return (way.will.seconds, *way.takes)


def share(vms: Sequence[Free], seconds: float, ceilings: Sequence[float], *, even: bool) -> dict[str, int]:
    """Runs a day of each VM. `seconds` and `ceilings` are what is left of each once all have their fewest runs.

    VMs of one RPO are a class. If all are to be served evenly and a class would be served worse than before any advice,
    in hours or in breaches, its weight grows and all is shared out anew.
    """
    weights = {vm.need.rpo: _Weights() for vm in vms}
    counts: dict[str, int] = {}
    for _ in range(ROUNDS if even else 1):
        counts = _share_out(vms, weights, Scales(seconds, ceilings))
        worse = [rpo for rpo in weights if _serves_worse(rpo, vms, counts, weights)]
        if not worse:
            break
    return counts


def without_prices(vms: Sequence[Free]) -> list[Free]:
    """The same where runs cost no money."""
    return [
        replace(
            vm,
            now=replace(vm.now, spent=0.0),
            ways={runs: replace(way, spent=0.0) for runs, way in vm.ways.items()},
        )
        for vm in vms
    ]


def _cost_of(way: Way, vm: Free, weight: _Weights) -> float:
    """What is to be made small: breaches a day, time over the RPO, a little of the exposure, and money."""
    will, rpo = way.will, vm.need.rpo or inf
    late = weight.breaches * will.breaches + weight.late_hours * will.late_hours * 3600 / rpo
    return late + EXPOSURE_WEIGHT * will.exposure / max(vm.load.day_bytes, 1.0) + way.spent


def _share_out(vms: Sequence[Free], weights: Mapping[float | None, _Weights], scales: Scales) -> dict[str, int]:
    """From the fewest on, what is left goes where a second prevents most."""
    by_name = {vm.need.vm: vm for vm in vms}
    counts = {name: vm.fewest for name, vm in by_name.items()}
    steps: list[_Step] = []
    for vm in vms:
        weight = weights[vm.need.rpo]
        steps += _hull(
            vm.need.vm, [(scales.weigh(way), _cost_of(way, vm, weight), runs) for runs, way in vm.ways.items()]
        )
    for step in sorted(steps):
        ways = by_name[step.vm].ways
        if counts[step.vm] == step.before and scales.put(ways[step.before], ways[step.after]):
            counts[step.vm] = step.after
    for name, vm in by_name.items():
        if _not_worth_it(vm, counts[name]) and scales.put(vm.way(counts[name]), vm.now, work=False):
            counts[name] = vm.today
    return counts


def _serves_worse(
    rpo: float | None, vms: Sequence[Free], counts: Mapping[str, int], weights: Mapping[float | None, _Weights]
) -> bool:
    """Whether a class has more hours over its RPO, or more breaches, than before; its weights grow where it has."""
    members = [vm for vm in vms if vm.need.rpo == rpo]
    will = [vm.way(counts[vm.need.vm]).will for vm in members]
    weight, found = weights[rpo], False
    for name in ("late_hours", "breaches"):
        before = sum(getattr(vm.base, name) for vm in members)
        if sum(getattr(one, name) for one in will) > before * (1 + HYSTERESIS) + LEAST_WORSE:
            setattr(weight, name, getattr(weight, name) * GROWS)
            found = True
    return found


def _hull(vm: str, points: list[tuple[float, float, int]]) -> list[_Step]:
    """Steps along the lower convex hull of (work, cost, runs)."""
    hull: list[tuple[float, float, int]] = []
    for point in sorted(points):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) >= 2 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return [_Step(_slope(a, b), vm, a[2], b[2]) for a, b in pairwise(hull)]


def _slope(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    return (b[1] - a[1]) / max(b[0] - a[0], 1e-9)


def _not_worth_it(vm: Free, runs: int) -> bool:
    """Whether another number of runs is within `HYSTERESIS` of today's and gains less than that."""
    if vm.today < vm.fewest or abs(runs - vm.today) > HYSTERESIS * vm.today:
        return False
    weight = _Weights()
    return _cost_of(vm.way(runs), vm, weight) > (1 - HYSTERESIS) * _cost_of(vm.now, vm, weight)
