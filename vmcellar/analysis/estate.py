"""How many runs a day each VM gets: what policy allows, what each number means, costs and takes of tiers, and who gets
fewer than it would because of a tier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from vmcellar.analysis import sharing, spending
from vmcellar.analysis.judging import Judgement, Need, Starts, judge, open_time, spread_runs
from vmcellar.analysis.loads import Load
from vmcellar.analysis.sharing import Free, Way

RUNS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 18, 20, 22, 24, 26, 28, 32, 36, 42, 48, 60, 72, 96)


@dataclass(slots=True)
class Counts:
    """How many runs a day each VM gets, how few its policy allows, and what of a tier decided about it."""

    runs: dict[str, int]
    fewest: dict[str, int]
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

    def free(self, need: Need, tried: Mapping[int, Judgement], least: int) -> Free:
        """A VM with its choices from the fewest on."""
        load, today = self.loads[need.vm], len(self.current[need.vm])
        ways = {
            runs: Way(one, self._in_breaches(need, runs, least), self.takes(need, runs))
            for runs, one in tried.items()
            if runs >= least
        }
        now = Way(self.was[need.vm], self._in_breaches(need, today, least), self.takes(need, today))
        return Free(need, load, today, now, self.base[need.vm], ways)

    def _in_breaches(self, need: Need, runs: int, least: int) -> float:
        """The money that so many runs cost a day more than the fewest, in breaches."""
        return self.money_more(need, runs, least) / (need.breach_cost or self.breach) if self.breach else 0.0

    def money_more(self, need: Need, runs: int, than: int) -> float:
        """The money a day that so many runs cost more than another number."""
        load = self.loads[need.vm]
        much, little = (spending.money(load, need.kept, each, self.stores) for each in (runs, than))
        return much - little


def runs_of_all(estate: Estate, left: float, conflicts: list[str], *, even: bool) -> Counts:
    """How many runs a day each VM gets for `left` seconds of work."""
    fewest: dict[str, int] = {}
    vms: list[Free] = []
    for need in estate.needs:
        if need.fixed:
            fewest[need.vm] = len(estate.current[need.vm])
            left -= estate.was[need.vm].seconds
            continue
        load = estate.loads[need.vm]
        tried = _tried(need, load)
        fewest[need.vm] = least = _least(need, tried)
        if _late(need, tried[least]):
            conflicts.append(
                f"{need.vm}: its RPO of {(need.rpo or 0) / 3600:g} h cannot be kept inside its window or "
                "with runs this long"
            )
        left -= tried[least].seconds
        vms.append(estate.free(need, tried, least))
    taken = estate.takes_of_all(fewest)
    tops = _tops(estate, taken, conflicts)
    rooms = [top - least for top, least in zip(tops, taken, strict=True)]
    counts = {**fewest, **sharing.share(vms, left, rooms, even=even)}
    decided: dict[str, list[str]] = {need.vm: [] for need in estate.needs}
    if estate.ceilings:
        lifted = {**fewest, **sharing.share(vms, left, [inf] * len(rooms), even=even)}
        over = zip(estate.ceilings, estate.takes_of_all(lifted), tops, strict=True)
        why = "; ".join(each.why for each, takes, top in over if takes > top)
        _note(decided, vms, counts, lifted, lambda *_: why)
    if estate.breach:
        cheap = {**fewest, **sharing.share(sharing.without_prices(vms), left, rooms, even=even)}
        _note(decided, vms, counts, cheap, partial(_dearer, estate))
    return Counts(counts, fewest, decided)


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
    counts: Mapping[str, int],
    freed: Mapping[str, int],
    why: Callable[[Need, int, int], str],
) -> None:
    """Write down why a VM has fewer runs than it would have without a limit or price."""
    for need in (vm.need for vm in vms):
        had, would = counts[need.vm], freed[need.vm]
        if had < would and (words := why(need, would, had)):
            decided[need.vm].append(words)


def _choices(need: Need, load: Load) -> list[int]:
    """Numbers of runs that leave room for each run: half of the open time is work at most, in a window one an hour."""
    _, length = open_time(need)
    most = RUNS[-1] if need.window is None else max(length // 60, 1)
    return [runs for runs in RUNS if runs == 1 or (runs <= most and load.day_seconds(runs) < 0.5 * length * 60)]


def _tried(need: Need, load: Load) -> dict[int, Judgement]:
    """What each number of runs means, spread evenly."""
    return {runs: judge(load, spread_runs(runs, need), need.rpo) for runs in _choices(need, load)}


def least_runs(need: Need, load: Load) -> int:
    """The fewest runs a day that keep the RPO as long as nothing fails and runs take as long as usual; where none do,
    those that break it least often.
    """
    return _least(need, _tried(need, load))


def _least(need: Need, tried: Mapping[int, Judgement]) -> int:
    kept = [runs for runs, one in tried.items() if not _late(need, one)]
    return min(kept) if kept else min(tried, key=lambda runs: (tried[runs].breaches, runs))


def _late(need: Need, one: Judgement) -> bool:
    return need.rpo is not None and one.breaches >= 0.5


def _dearer(estate: Estate, need: Need, runs: int, than: int) -> str:
    """Why a VM does not get so many runs, in words."""
    more = estate.money_more(need, runs, than) * spending.MONTH
    return f"{runs} would cost {more:.2g} more a month, which they are not worth"
