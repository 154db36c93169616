"""How many runs a day each VM gets: what policy allows, what each number means, costs and takes of tiers, and who gets
fewer than it would because of a tier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from vmcellar.analysis import sharing, spending
from vmcellar.analysis.judging import Judgement, Need, Starts, judge, open_time
from vmcellar.analysis.loads import Load
from vmcellar.analysis.rhythm import rhythms
from vmcellar.analysis.sharing import Free, Way

RUNS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 18, 20, 22, 24, 26, 28, 32, 36, 42, 48, 60, 72, 96)


@dataclass(slots=True)
class Counts:
    """What way each VM gets, the one with the fewest runs that policy allows, and what of a tier decided about it."""

    ways: dict[str, Way]
    fewest: dict[str, Way]
    decided: dict[str, list[str]]


class Estate:
    """All VMs with what they ask, do and have today, and the tiers that they share. `today` is what the schedules mean
    that VMs have, and that they had before any advice.
    """

    def __init__(
        self,
        needs: Sequence[Need],
        loads: Mapping[str, Load],
        current: Mapping[str, Starts],
        today: tuple[Mapping[str, Judgement], Mapping[str, Judgement]],
        stores: Sequence[spending.Store],
    ) -> None:
        self.needs, self.loads, self.current = needs, loads, current
        self.was, self.base = today
        self.stores = stores
        self.ceilings = spending.ceilings_of(stores)
        spent = self._spent({need.vm: len(current[need.vm]) for need in needs})
        self.breach = spent * spending.MONTH / len(needs) if needs else 0.0
        """What a breach is worth of which policy says nothing."""

    def _spent(self, runs: Mapping[str, int]) -> float:
        """Money a day."""
        if not self.stores:
            return 0.0
        return sum(spending.money(self.loads[need.vm], need.kept, runs[need.vm], self.stores) for need in self.needs)

    def money(self, starts: Mapping[str, Starts]) -> tuple[float, float] | None:
        """Of today's schedules and others, a month; None when all of it is nothing."""
        was, will = (
            spending.MONTH * self._spent({vm: len(each) for vm, each in made.items()})
            for made in (self.current, starts)
        )
        return (was, will) if was or will else None

    def takes(self, need: Need, runs: int) -> tuple[float, ...]:
        """What so many runs take of each ceiling."""
        return tuple(each.takes(self.loads[need.vm], need.kept, runs) for each in self.ceilings)

    def takes_of_all(self, runs: Mapping[str, int]) -> list[float]:
        """The sum over all VMs."""
        every = [self.takes(need, runs[need.vm]) for need in self.needs]
        return [sum(each) for each in zip(*every, strict=True)] if every else [0.0] * len(self.ceilings)

    def free(self, need: Need, tried: Sequence[tuple[Starts, Judgement]], least: int) -> Free:
        """A VM with its choices from the fewest runs on."""
        ways = tuple(self.way(need, starts, one, least) for starts, one in tried if len(starts) >= least)
        now = self.way(need, self.current[need.vm], self.was[need.vm], least)
        return Free(need, self.loads[need.vm], now, self.base[need.vm], ways)

    def way(self, need: Need, starts: Starts, will: Judgement, least: int) -> Way:
        """What starts mean, cost and take."""
        return Way(starts, will, self._in_breaches(need, len(starts), least), self.takes(need, len(starts)))

    def _in_breaches(self, need: Need, runs: int, least: int) -> float:
        """The money that so many runs cost a day more than the fewest, in breaches."""
        return self.money_more(need, runs, least) / (need.breach_cost or self.breach) if self.breach else 0.0

    def money_more(self, need: Need, runs: int, than: int) -> float:
        """The money a day that so many runs cost more than another number."""
        load = self.loads[need.vm]
        much, little = (spending.money(load, need.kept, each, self.stores) for each in (runs, than))
        return much - little


def ways_of_all(estate: Estate, left: float, conflicts: list[str], *, even: bool) -> Counts:
    """The way of each VM for `left` seconds of work."""
    fixed: dict[str, Way] = {}
    vms: list[Free] = []
    for need in estate.needs:
        if need.fixed:
            now = estate.way(need, estate.current[need.vm], estate.was[need.vm], len(estate.current[need.vm]))
            fixed[need.vm] = now
            left -= now.will.seconds
            continue
        tried = _tried(need, estate.loads[need.vm])
        least = _least(need, tried)
        if all(_late(need, one) for starts, one in tried if len(starts) == least):
            conflicts.append(
                f"{need.vm}: its RPO of {(need.rpo or 0) / 3600:g} h cannot be kept inside its window or "
                "with runs this long"
            )
        vms.append(estate.free(need, tried, least))
    fewest = {**fixed, **{vm.need.vm: vm.fewest for vm in vms}}
    tops = _tops(estate, estate.takes_of_all(_counts(fewest)), conflicts)
    gone = [sum(each) for each in zip(*(way.takes for way in fixed.values()), strict=True)] or [0.0] * len(tops)
    rooms = [top - taken for top, taken in zip(tops, gone, strict=True)]
    ways = {**fixed, **sharing.share(vms, left, rooms, even=even)}
    decided: dict[str, list[str]] = {need.vm: [] for need in estate.needs}
    if estate.ceilings:
        lifted = {**fixed, **sharing.share(vms, left, [inf] * len(rooms), even=even)}
        over = zip(estate.ceilings, estate.takes_of_all(_counts(lifted)), tops, strict=True)
        why = "; ".join(each.why for each, takes, top in over if takes > top)
        _note(decided, vms, ways, lifted, lambda *_: why)
    if estate.breach:
        cheap = {**fixed, **sharing.share(sharing.without_prices(vms), left, rooms, even=even)}
        _note(decided, vms, ways, cheap, partial(_dearer, estate))
    return Counts(ways, fewest, decided)


def _counts(ways: Mapping[str, Way]) -> dict[str, int]:
    return {vm: way.runs for vm, way in ways.items()}


def _tops(estate: Estate, least: Sequence[float], conflicts: list[str]) -> list[float]:
    """How much of each ceiling all may take: what it is, or, where the fewest runs take more, no more than today."""
    today = estate.takes_of_all({vm: len(starts) for vm, starts in estate.current.items()})
    tops = []
    for ceiling, few, now in zip(estate.ceilings, least, today, strict=True):
        if few > ceiling.most:
            conflicts.append(ceiling.broken(few - ceiling.most))
        tops.append(ceiling.most if few <= ceiling.most else max(few, now))
    return tops


def _note(
    decided: dict[str, list[str]],
    vms: Sequence[Free],
    ways: Mapping[str, Way],
    freed: Mapping[str, Way],
    why: Callable[[Need, int, int], str],
) -> None:
    """Write down why a VM has fewer runs than it would have without a limit or price."""
    for need in (vm.need for vm in vms):
        had, would = ways[need.vm].runs, freed[need.vm].runs
        if had < would and (words := why(need, would, had)):
            decided[need.vm].append(words)


def _choices(need: Need, load: Load) -> list[int]:
    """Numbers of runs that leave room for each run: half of the open time is work at most, in a window one an hour."""
    _, length = open_time(need)
    most = RUNS[-1] if need.window is None else max(length // 60, 1)
    return [runs for runs in RUNS if runs == 1 or (runs <= most and load.day_seconds(runs) < 0.5 * length * 60)]


def _tried(need: Need, load: Load) -> list[tuple[Starts, Judgement]]:
    """What each number of runs means in each rhythm, the fewest first."""
    return [
        (starts, judge(load, starts, need.rpo)) for runs in _choices(need, load) for starts in rhythms(runs, need, load)
    ]


def least_runs(need: Need, load: Load) -> int:
    """The fewest runs a day that keep the RPO as long as nothing fails and runs take as long as usual; where none do,
    those that break it least often.
    """
    return _least(need, _tried(need, load))


def _least(need: Need, tried: Sequence[tuple[Starts, Judgement]]) -> int:
    kept = [len(starts) for starts, one in tried if not _late(need, one)]
    return min(kept) if kept else min((one.breaches, len(starts)) for starts, one in tried)[1]


def _late(need: Need, one: Judgement) -> bool:
    return need.rpo is not None and one.breaches >= 0.5


def _dearer(estate: Estate, need: Need, runs: int, than: int) -> str:
    """Why a VM does not get so many runs, in words."""
    more = estate.money_more(need, runs, than) * spending.MONTH
    return f"{runs} would cost {more:.2g} more a month, which they are not worth"
