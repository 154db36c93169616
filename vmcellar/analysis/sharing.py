"""Sharing out the work of a day: how many runs each VM gets, in what rhythm, within what tiers can hold and take.

Each VM has a choice of ways, and takes one (`choosing.py`), so that one sum is small: the breaches expected a day, the
time over the RPO, a little of the exposure, and the money that runs cost, in breaches: as many as that money is worth
(`advise.py`). What all do together is bounded by the work that may be done and each tier's ceiling; and, where all are
to be served evenly, by what each class of RPO had before any advice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.analysis.choosing import Choice, choose
from vmcellar.analysis.judging import inside

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmcellar.analysis.judging import Judgement, Need, Starts
    from vmcellar.analysis.loads import Load

    Floats = NDArray[np.float64]

HYSTERESIS = 0.1
LATE_WEIGHT = 3.0
EXPOSURE_WEIGHT = 0.001
"""Being over the RPO for as long as the RPO itself weighs so many breaches; exposure (as a share of a day's change)
only decides between equals.
"""
UNEVEN = 1000.0
"""What a breach, or time over the RPO, more than a class had weighs: so much that it only comes where nothing helps."""
FEWER, LONGER = 0.9, 1.1
"""Of the breaches and of the hours that a class had before any advice, what it may have: fewer, as queues that nobody
foresees make some; and few failures make the hours, so a tenth of them is less than anybody could see.
"""


@dataclass(frozen=True, slots=True)
class Way:
    """Starts of a day as they follow each other: what they mean, the money that they cost more than the fewest, in
    breaches, and how much of each ceiling they take.
    """

    starts: Starts
    will: Judgement
    spent: float = 0.0
    takes: tuple[float, ...] = ()

    @property
    def runs(self) -> int:
        """How many a day."""
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Free:
    """A VM whose way is to be chosen, from `ways`, of which those with the fewest runs that policy allows come first.
    `now` is today's, which may have fewer than that; `base` is what it meant before any advice.
    """

    need: Need
    load: Load
    now: Way
    base: Judgement
    ways: tuple[Way, ...]

    @property
    def fewest(self) -> Way:
        """The best of those with the fewest runs."""
        least = self.ways[0].runs
        return min((way for way in self.ways if way.runs == least), key=self.cost)

    def cost(self, way: Way) -> float:
        """What is to be made small: breaches a day, time over the RPO, a little of the exposure, and money."""
        will = way.will
        late = will.breaches + LATE_WEIGHT * will.late_hours * 3600 / (self.need.rpo or inf)
        return late + EXPOSURE_WEIGHT * will.exposure / max(self.load.day_bytes, 1.0) + way.spent

    def options(self) -> list[tuple[Way, float]]:
        """The ways and today's, with their costs. Another way with nearly as many runs as today's has to gain a share
        of what today's costs, so that advice does not flap. Today's is no choice where policy asks for more runs, or
        for others: in a window.
        """
        if self.now.runs < self.ways[0].runs or not inside(self.need, self.now.starts):
            return [(way, self.cost(way)) for way in self.ways]
        today = self.cost(self.now)
        near = HYSTERESIS * self.now.runs
        others = [
            (way, self.cost(way) + (HYSTERESIS * today if abs(way.runs - self.now.runs) <= near else 0.0))
            for way in self.ways
        ]
        return [(self.now, today), *others]


def share(vms: Sequence[Free], seconds: float, ceilings: Sequence[float], *, even: bool) -> dict[str, Way]:
    """The way of each VM. `seconds` of a day and `ceilings` are what all of them may take; where even the fewest runs
    take more work, VMs have those.

    VMs of one RPO are a class. If all are to be served evenly, none has more than `FEWER` of the breaches and `LONGER`
    of the hours over its RPO that it had before any advice, as far as that can be had.
    """
    if not vms:
        return {}
    work = max(seconds, sum(vm.fewest.will.seconds for vm in vms))
    choice, ways = _choice(vms, (work, *ceilings), even=even)
    return {vm.need.vm: ways[index] for vm, index in zip(vms, choose(choice), strict=True)}


def without_prices(vms: Sequence[Free]) -> list[Free]:
    """The same where runs cost no money."""
    return [
        replace(vm, now=replace(vm.now, spent=0.0), ways=tuple(replace(way, spent=0.0) for way in vm.ways))
        for vm in vms
    ]


def _choice(vms: Sequence[Free], tops: Sequence[float], *, even: bool) -> tuple[Choice, list[Way]]:
    """What is to be chosen, and the ways that its options are."""
    each = [vm.options() for vm in vms]
    ways = [way for found in each for way, _ in found]
    owner = np.repeat(np.arange(len(vms)), [len(found) for found in each])
    takes = np.array([(way.will.seconds, *way.takes) for way in ways]).T
    bounded = np.array(tops) < inf
    wants, limits = _before_advice(vms, ways, owner) if even else ([], [])
    choice = Choice(
        owner,
        costs=np.array([cost for found in each for _, cost in found]),
        takes=takes[bounded],
        tops=np.array(tops)[bounded],
        wants=np.array(wants).reshape(len(limits), len(ways)),
        limits=np.array(limits),
        weight=UNEVEN,
    )
    return choice, ways


def _before_advice(
    vms: Sequence[Free], ways: Sequence[Way], owner: NDArray[np.int64]
) -> tuple[list[Floats], list[float]]:
    """For each class of RPO the breaches and the hours over it that ways mean, as `cost` weighs them, and how much of
    both it may have.
    """
    rpos = np.array([vms[int(vm)].need.rpo or 0.0 for vm in owner])
    wants, limits = [], []
    for rpo in sorted({vm.need.rpo for vm in vms if vm.need.rpo}):
        had = [vm.base for vm in vms if vm.need.rpo == rpo]
        late = LATE_WEIGHT * 3600 / rpo
        wants.append(np.where(rpos == rpo, [way.will.breaches for way in ways], 0.0))
        limits.append(FEWER * sum(one.breaches for one in had))
        wants.append(np.where(rpos == rpo, [late * way.will.late_hours for way in ways], 0.0))
        limits.append(LONGER * late * sum(one.late_hours for one in had))
    return wants, limits
