"""What a schedule would have done in weeks that really were: runs queue on their hosts, take time, fail, and are late.

The change of every hour is given; how long runs take and which fail is drawn from a seed that does not depend on the
schedule, so that two schedules meet the same luck.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.analysis.judging import Host, Need, Starts
from vmcellar.analysis.loads import DAY_MINUTES
from vmcellar.analysis.spending import RUN_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Truth:
    """A VM as it really was: cumulative change by hour from the replay's midnight (bytes), seconds of a run at rest,
    bytes per second, spread of durations, how often runs fail, bytes stored per byte changed.
    """

    vm: str
    curve: Floats
    rest: float
    speed: float
    spread: float
    fails: float
    stored: float


@dataclass(slots=True)
class Outcome:
    """What came of a VM's schedule: breaches of its RPO and the hours over it, runs, seconds of work, bytes stored,
    runs that ended outside the window, and bytes that a loss at any moment would have cost on average.
    """

    breaches: int = 0
    breach_hours: float = 0.0
    runs: int = 0
    work: float = 0.0
    stored: float = 0.0
    overruns: int = 0
    exposure: float = 0.0

    def __add__(self, other: Outcome) -> Outcome:
        """The sum, figure by figure."""
        return Outcome(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True, slots=True)
class Replayed:
    """Outcomes by VM, and by host the most runs that waited or worked at once."""

    by_vm: Mapping[str, Outcome]
    peaks: Mapping[str, int]

    def total(self, vms: Iterable[str] | None = None) -> Outcome:
        """The sum over some VMs, or all."""
        return sum((self.by_vm[vm] for vm in (self.by_vm if vms is None else vms)), Outcome())


@dataclass(slots=True)
class _State:
    """A VM within a replay: when its last good point was taken, until when a run is under way, what came so far."""

    need: Need
    truth: Truth
    luck: tuple[Floats, Floats]
    point: float
    busy_until: float = 0.0
    outcome: Outcome = field(default_factory=Outcome)


def replay(
    needs: Sequence[Need],
    hosts: Sequence[Host],
    truths: Mapping[str, Truth],
    schedules: Mapping[str, Starts],
    days: int,
    seed: int = 1,
) -> Replayed:
    """Run `schedules` (minutes of each day) for so many days."""
    by_vm: dict[str, Outcome] = {}
    peaks = {}
    for host in hosts:
        members = [need for need in needs if need.host == host.name]
        found, peaks[host.name] = _replay_host(host, members, truths, schedules, days, seed)
        by_vm.update(found)
    return Replayed(by_vm, peaks)


def _replay_host(
    host: Host,
    needs: Sequence[Need],
    truths: Mapping[str, Truth],
    schedules: Mapping[str, Starts],
    days: int,
    seed: int,
) -> tuple[dict[str, Outcome], int]:
    """Outcomes of one host's VMs, and its peak. Runs start in the order of their due times as slots become free."""
    due = [(day * 86400.0 + at * 60.0, need.vm) for need in needs for day in range(days) for at in schedules[need.vm]]
    states = {
        need.vm: _State(need, truths[need.vm], _luck(need.vm, days, seed), -_usual_gap(schedules[need.vm]))
        for need in needs
    }
    free = [0.0] * host.concurrent
    spans = []
    for when, vm in sorted(due):
        if states[vm].busy_until > when:
            continue
        end = _run(max(when, heapq.heappop(free)), when, states[vm])
        heapq.heappush(free, end)
        spans.append((when, end))
    for state in states.values():
        _age(state, days * 86400.0)
        state.outcome.exposure /= days * 86400.0
    return {vm: state.outcome for vm, state in states.items()}, _most(spans)


def _luck(vm: str, days: int, seed: int) -> tuple[Floats, Floats]:
    """Uniform and normal draws for every quarter of an hour of a VM, the same for every schedule."""
    random = np.random.default_rng([seed, *vm.encode()])
    return random.random(days * 96 + 96), random.normal(0, 1, days * 96 + 96)


def _usual_gap(starts: Starts) -> float:
    """Before the replay, the VM was backed up as its schedule says."""
    return (DAY_MINUTES - max(starts)) * 60.0


def _run(begin: float, due: float, state: _State) -> float:
    """One run; gives back when it ended."""
    truth, outcome = state.truth, state.outcome
    changed = _change(truth, state.point, begin)
    slot = int(due // 900)
    took = (truth.rest + changed / truth.speed) * float(np.exp(truth.spread * state.luck[1][slot]))
    end = begin + took
    outcome.runs += 1
    outcome.work += took
    outcome.overruns += _outside(state.need, begin, end)
    if state.luck[0][slot] >= truth.fails:
        outcome.stored += changed * truth.stored + RUN_BYTES
        _age(state, end)
        state.point = begin
    state.busy_until = end
    return end


def _change(truth: Truth, begin: float, end: float) -> float:
    """Bytes between two moments; before the replay, what the mean of its first week gives."""
    hours = np.arange(len(truth.curve))
    first, last = np.interp([begin / 3600, end / 3600], hours, truth.curve)
    week = min(168, len(truth.curve) - 1)
    return float(last - first + max(-begin / 3600, 0.0) * truth.curve[week] / week)


def _outside(need: Need, begin: float, end: float) -> int:
    """Whether a run went on after its window had closed."""
    if need.window is None:
        return 0
    first, last = need.window
    length = (last - first) % DAY_MINUTES or DAY_MINUTES
    since = (begin / 60 - first) % DAY_MINUTES
    return int(since + (end - begin) / 60 > length)


def _age(state: _State, until: float) -> None:
    """A point served until a newer one was there: was it too old by then, and what would have been lost meanwhile?"""
    age = until - state.point
    if state.need.rpo is not None and age > state.need.rpo:
        state.outcome.breaches += 1
        state.outcome.breach_hours += (age - state.need.rpo) / 3600
    state.outcome.exposure += 0.5 * _change(state.truth, state.point, until) * age


def _most(spans: Sequence[tuple[float, float]]) -> int:
    """The most runs that waited or worked at once."""
    events = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in events:
        now += step
        most = max(most, now)
    return most
