"""Which VM to back up how often and when: the least expected loss, load and money within policy, windows and limits.

How it decides, so that a person can follow:

1. For each VM and each number of runs a day, the **expected breaches** of its RPO follow from the gaps between runs,
   how long runs take and how often they fail; the **exposure** is the change that a loss would cost on average; the
   **money** is what its runs cost on tiers that have prices, until retention drops their points (`spending.py`).
2. Each VM gets at least the fewest runs that keep its RPO while nothing fails, and one a day. What is left of the work
   that today's schedule costs goes, step by step, to where a second of work prevents most (`sharing.py`), as long as no
   tier becomes full by it, or gets more than its moves can bring.
3. Starts are laid on the minutes of a day, the largest VMs first, each where its host is least busy and its tier takes
   what it writes, inside the VM's window, then moved again once all others lie (`placing.py`).
4. What would gain little stays as it is (`HYSTERESIS`), so that advice does not flap.

**One sum is made small**: breaches expected a day, the time over the RPO by `LATE_WEIGHT`, a little of the exposure,
and money in breaches: one is worth what policy says that it costs (`breach_cost`), else what the mean VM's runs of a
month cost.

Nothing is applied here. Times are minutes of a UTC day; incremental runs only, as every point is a full one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmcellar.analysis.estate import Counts, Estate, ways_of_all
from vmcellar.analysis.judging import Host, Judgement, Need, Starts, inside, judge, open_time, spread_runs
from vmcellar.analysis.loads import DAY_MINUTES, Load
from vmcellar.analysis.placing import Grid, Placed, durations, footprint, place
from vmcellar.analysis.rhythm import SLOWER, longest_gap, pause_of, turned, usual_run
from vmcellar.analysis.sharing import Way
from vmcellar.analysis.spending import Store
from vmcellar.backup.report import size_text, span_text

BUDGET = 1.05
"""With so much of today's work no class of RPO needs to pay for another; with as much as today one would."""


BUSY = 2.0
"""Runs of the mean day are laid out; those of its busiest may take so many times as long."""
PROMISED = 0.05
"""So many more breaches a day than a way was chosen for are the same."""


@dataclass(frozen=True, slots=True)
class Change:
    """A VM's schedule before and after, as starts in minutes of the day, with what both mean and why. `decided` says
    which limit or price of a tier it was that another schedule would have broken or cost.
    """

    vm: str
    host: str
    before: Starts
    after: Starts
    was: Judgement
    will: Judgement
    why: str
    decided: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """All changes (also the VMs that stay as they are), what policy asks and cannot be had, and peaks by host: the most
    runs at once, before and after. `money` is what runs of a month cost, before and after; None without prices.
    `unknown` says what of the tiers nobody could tell, so that advice goes by nothing there.
    """

    changes: tuple[Change, ...]
    conflicts: tuple[str, ...]
    peaks: Mapping[str, tuple[int, int]]
    money: tuple[float, float] | None = None
    unknown: tuple[str, ...] = ()

    def total(self, after: bool) -> Judgement:
        """Sums over all VMs."""
        parts = [one.will if after else one.was for one in self.changes]
        return Judgement(
            *(sum(getattr(part, name) for part in parts) for name in ("breaches", "late_hours", "exposure", "seconds"))
        )


def advise(
    needs: Sequence[Need],
    hosts: Sequence[Host],
    loads: Mapping[str, Load],
    current: Mapping[str, Starts],
    budget: float = BUDGET,
    *,
    even: bool = True,
    stores: Sequence[Store] = (),
) -> Advice:
    """Advice for all VMs of `needs`; those without a load or a current schedule keep what they have.

    `budget` is the work that may be done, as a share of what today's schedules cost. `even`: no class of RPO is served
    worse than today, so that what VMs of one gain is not paid by those of another. What VMs had before any advice
    counts as today's then, so that advice upon advice neither grows nor flaps. `stores` are the tiers, the one that
    runs write to first; none: they have no limits and cost nothing.
    """
    names = {host.name for host in hosts}
    known = [need for need in needs if need.vm in loads and current.get(need.vm) and need.host in names]
    was = {need.vm: judge(loads[need.vm], current[need.vm], need.rpo) for need in known}
    conflicts = [f"{need.vm}: no history, schedule or host to start from" for need in needs if need not in known]
    base = {need.vm: _before_advice(need, loads[need.vm], was[need.vm]) for need in known}
    left = budget * sum(judgement.seconds for judgement in base.values())
    estate = Estate(known, loads, current, (was, base), stores)
    counts = ways_of_all(estate, left, conflicts, even=even)
    starts: dict[str, Starts] = {}
    peaks = {}
    for host in hosts:
        members = [need for need in known if need.host == host.name]
        placed = _laid_out(members, host, loads, current, counts)
        starts.update(placed.starts)
        peaks[host.name] = (_peak_of(current, members, host, loads), placed.grid.peak())
        conflicts += _overload(placed, host) + _too_fast(placed, members, host, loads)
        for vm in placed.paced:
            counts.decided[vm].append(f"at other times {host.store} would get more at once than it may")
    changes = []
    for need in known:
        will = judge(loads[need.vm], starts[need.vm], need.rpo)
        decided = tuple(counts.decided[need.vm])
        why = _why(need, (was[need.vm], will), current[need.vm], starts[need.vm], decided)
        changes.append(Change(need.vm, need.host, current[need.vm], starts[need.vm], was[need.vm], will, why, decided))
    return Advice(tuple(changes), tuple(conflicts), peaks, estate.money(starts))


def _before_advice(need: Need, load: Load, was: Judgement) -> Judgement:
    """What the schedule meant that a VM had before any advice; today's, where there was none."""
    return was if need.own is None else judge(load, spread_runs(need.own, need), need.rpo)


def _laid_out(
    needs: Sequence[Need], host: Host, loads: Mapping[str, Load], current: Mapping[str, Starts], counts: Counts
) -> Placed:
    """Starts of a host's VMs; where it would run more at once than it may, or write faster and fewer runs help, of the
    fewest.
    """
    placed = _lay_out(needs, host, loads, current, counts.ways)
    if placed.grid.peak() > host.concurrent:
        return _lay_out(needs, host, loads, current, counts.fewest)
    if len(placed.grid.fast):
        fewer = _lay_out(needs, host, loads, current, counts.fewest)
        if len(fewer.grid.fast) < len(placed.grid.fast):
            for vm in (need.vm for need in needs if counts.fewest[need.vm].runs < counts.ways[need.vm].runs):
                counts.decided[vm].append(f"with more runs {host.store} would get more at once than it may")
            return fewer
    return placed


def _lay_out(
    needs: Sequence[Need],
    host: Host,
    loads: Mapping[str, Load],
    current: Mapping[str, Starts],
    ways: Mapping[str, Way],
) -> Placed:
    """Starts of a host's VMs."""
    options = {need.vm: _options(need, loads[need.vm], ways[need.vm], current[need.vm]) for need in needs}
    return place({need.vm: loads[need.vm] for need in needs}, options, host.concurrent, host.writes)


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


def _too_fast(placed: Placed, needs: Sequence[Need], host: Host, loads: Mapping[str, Load]) -> list[str]:
    """What a tier cannot take from a host, in words: runs that alone are too fast for it by name, else the sum."""
    fast = placed.grid.fast
    if not len(fast):
        return []
    most = f"{size_text(placed.grid.most[fast].min())}/s (half of its bandwidth:, as all is read back)"
    said = []
    for load in (loads[need.vm] for need in needs):
        own, _ = footprint(placed.starts[load.vm], load)
        if load.writes > placed.grid.most[own].min():
            said.append(
                f"{load.vm}: it alone writes {size_text(load.writes)}/s to {host.store}, which may take {most} then; a "
                "lower bandwidth: of its job slows it"
            )
    at_once = f"{size_text(placed.grid.flow[fast].max())}/s"
    return said or [
        f"{host.name}: for {len(fast)} minutes a day up to {at_once} are written to {host.store}, which may take {most}"
    ]


def _options(need: Need, load: Load, way: Way, current: Starts) -> list[Starts]:
    """The times of day that a way may lie at, today's first when it is today's."""
    if need.fixed:
        return [current]
    if need.window is None:
        found = turned(way.starts)
        return _as_promised(need, load, way, [current, *found] if way.starts == current else found)
    tried = [current] if way.runs == len(current) and inside(need, current) else []
    return _as_promised(need, load, way, _ending_in_window(need, load, [*tried, *_in_window(need, way.runs)]))


def _as_promised(need: Need, load: Load, way: Way, found: Sequence[Starts]) -> list[Starts]:
    """Those at which a way means no more breaches than it was chosen for, or, where none does, the fewest: at another
    time of the day a run may find so much more change, or come so much later, that it is late though nothing failed.
    """
    longest = max(longest_gap(starts) for starts in found)
    if need.rpo is None or longest + usual_run(longest, load, SLOWER[-1]) <= need.rpo / 60:
        return list(found)
    breaches = [judge(load, starts, need.rpo).breaches for starts in found]
    most = max(way.will.breaches + PROMISED, min(breaches))
    return [starts for starts, each in zip(found, breaches, strict=True) if each <= most]


def _in_window(need: Need, runs: int) -> list[Starts]:
    """So many runs, evenly from any start in the first half of a window to its end (one: from any start), so that the
    long first run, which carries the change of the day, need not be at its opening.
    """
    begin, length = open_time(need)
    last = length if runs == 1 else length // 2
    return [
        tuple(sorted({round(begin + at + k * (length - at) / runs) % DAY_MINUTES for k in range(runs)}))
        for at in range(0, last, 1 if length <= 120 else 5)
    ]


def _ending_in_window(need: Need, load: Load, found: Sequence[Starts]) -> list[Starts]:
    """Those that end inside the window, if there are any, even when they take `BUSY` times as long; else those that run
    over it by least.
    """
    begin, length = open_time(need)
    for times in (BUSY, 1.0):
        room = [_room(starts, load, begin, length, times) for starts in found]
        if max(room) >= 0:
            return [starts for starts, left in zip(found, room, strict=True) if left >= 0]
    return [starts for starts, left in zip(found, room, strict=True) if left >= max(room)]


def _room(starts: Starts, load: Load, begin: int, length: int, times: float) -> float:
    """Minutes between the end of the last run and the end of the window; below zero: it runs over."""
    ordered = sorted(starts)
    took = times * durations(ordered, load)
    return min(length - (start - begin) % DAY_MINUTES - float(run) for start, run in zip(ordered, took, strict=True))


def _why(need: Need, means: tuple[Judgement, Judgement], before: Starts, after: Starts, decided: Sequence[str]) -> str:
    was, will = means
    if before == after:
        return "; ".join(("stays", *decided))
    said = []
    if len(after) != len(before):
        said.append(f"{len(after)} runs a day, not {len(before)}")
    if need.window is None and (pause := pause_of(after)):
        said.append(f"one pause of {span_text(pause * 60)}, so that a run makes up for a failed one in time")
    if abs(will.breaches - was.breaches) * 365 >= 0.5:
        said.append(f"{will.breaches * 365:.0f} RPO breaches expected a year, not {was.breaches * 365:.0f}")
    if abs(will.seconds - was.seconds) >= 1:
        more = "more" if will.seconds > was.seconds else "less"
        said.append(f"{abs(will.seconds - was.seconds):.0f} s {more} work a day")
    if not said and not decided:
        return "moved to where its host is less busy"
    return "; ".join((*said, *decided))
