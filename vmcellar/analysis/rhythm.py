"""How the runs of a day follow each other: evenly, or a little closer with one pause.

Runs at just half of the RPO, as people write them (every 2 h for 4 h), make every failure a breach: two gaps are the
RPO, and the run that ends it takes some minutes. With a few minutes less between them, and what that leaves as one
pause, as many runs mend nearly every failure in time. Gaps of a day sum to a day, so the hours over the RPO stay what
they were: few failures, those about the pause, make all of them.
"""

from __future__ import annotations

from itertools import pairwise
from math import exp

import numpy as np

from vmcellar.analysis.judging import Need, Starts, spread_runs
from vmcellar.analysis.loads import DAY_MINUTES, Load

SLOWER = (0.0, 1.0, 2.0)
"""Room is left for a run that takes so many spreads longer than usual."""
TURN = 11
"""Minutes between the places that a day with a pause is tried at; no divisor of an hour, so that all minutes are."""


def rhythms(runs: int, need: Need, load: Load) -> list[Starts]:
    """Ways to spread so many starts over a day: evenly and, where that helps and there is no window, with a pause."""
    found = [spread_runs(runs, need)]
    if need.rpo is not None and need.window is None:
        found += _with_pause(runs, need.rpo / 60, load)
    return found


def turned(starts: Starts) -> list[Starts]:
    """The same gaps at other times of the day, as they are first."""
    least = min(_gaps(starts))
    moves = range(0, DAY_MINUTES, TURN) if pause_of(starts) else range(0, least, 1 if least <= 120 else 5)
    return [tuple(sorted((start + move) % DAY_MINUTES for start in starts)) for move in moves]


def pause_of(starts: Starts) -> int:
    """The longest gap in minutes where gaps are not even; 0 where they are."""
    gaps = _gaps(starts)
    return max(gaps) if max(gaps) - min(gaps) > 1 else 0


def longest_gap(starts: Starts) -> int:
    """Minutes from a start to the next, at the most."""
    return max(_gaps(starts))


def _gaps(starts: Starts) -> list[int]:
    """Minutes from each start to the next; a day, of one alone."""
    ordered = sorted(starts)
    return [b - a for a, b in pairwise((*ordered, ordered[0] + DAY_MINUTES))]


def _with_pause(runs: int, rpo: float, load: Load) -> list[Starts]:
    """Gaps of which as many as even ones fit into the RPO (minutes), and the end of a run with them, usual or slow; the
    pause that is left keeps the RPO by itself, as long as nothing fails.
    """
    even = DAY_MINUTES / runs
    within = int(rpo / even + 1e-9)
    if not 2 <= within < runs or within * even <= rpo - usual_run(even, load, SLOWER[-1]):
        return []
    found = set()
    for slower in SLOWER:
        room = int(rpo - usual_run(even, load, slower))
        starts = tuple(number * room // within for number in range(runs))
        pause = DAY_MINUTES - starts[-1]
        if 0 < room < within * even and pause + usual_run(pause, load, slower) <= rpo:
            found.add(starts)
    return sorted(found)


def usual_run(gap: float, load: Load, slower: float) -> float:
    """Minutes that a run takes after the busiest such gap (minutes) of a day, so many spreads slower than usual."""
    ends = np.arange(gap, gap + DAY_MINUTES, 15.0)
    changed = load.upto(ends) - load.upto(ends - gap)
    return float(load.seconds(changed).max()) * exp(slower * load.spread) / 60
