"""One option for each of many, where all share what has a top: a multiple-choice knapsack with several knapsacks.

The linear relaxation (HiGHS, by SciPy) tells the best plan in which one may have shares of several options; there are
no more of these than sums that are shared. What they are rounded to is tried in all combinations, and the plan then
changed for one or two at a time while that makes it better. (SciPy's own integer solver found plans that were a little
better, took longer, and writes to standard output as it works.) The same input gives the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_diag, csr_array, diags_array, eye_array, hstack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indexes = NDArray[np.int64]

EXACT = 1e-9
"""Sums are exact to so much."""
SHARE = 1e-6
"""What less of an option than this is none."""
TRIED = 1 << 16
"""Combinations of rounded options that are tried at the most."""
NEAR, MOVES = 400, 200
"""Among how many options a better plan is looked for, those that the relaxation finds least too dear, and how often."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`count` options (n of them, one after the other): whose each is (`owner`, from 0 on, ascending), what it costs,
    what it takes of each sum that has a top (`takes`, sums by n), and of each that had better stay within a limit
    (`wants`, sums by n): what such a sum is over `limits` weighs `weight`. The first of `takes` orders options: who
    has the least of it has the least of all, and the least of all fit.
    """

    owner: Indexes
    costs: Floats
    takes: Floats
    tops: Floats
    wants: Floats
    limits: Floats
    weight: float

    @property
    def owners(self) -> int:
        """How many choose."""
        return int(self.owner[-1]) + 1

    def rows(self) -> Floats:
        """Costs, `takes` and `wants` by option."""
        return np.concatenate((self.costs[None], self.takes, self.wants))

    def judge(self, sums: Floats) -> Floats:
        """What plans cost, by their sums of `rows` (rows by plans); inf: over a top."""
        first = 1 + len(self.tops)
        over = (sums[1:first] > self.tops[:, None] + EXACT * np.abs(self.tops[:, None])).any(axis=0)
        worse = np.maximum(sums[first:] - self.limits[:, None], 0.0).sum(axis=0)
        return np.where(over, inf, sums[0] + self.weight * worse)


def choose(choice: Choice) -> Indexes:
    """The option of each owner."""
    shares, dearer = _relaxed(choice)
    return _bettered(choice, _rounded(choice, shares), dearer)


def _relaxed(choice: Choice) -> tuple[Floats, Floats]:
    """Shares of options in the best plan, and by how much each is too dear for it. Where nothing is found (as when
    numbers differ by too much), the options that take least, and their costs.
    """
    count, soft = len(choice.costs), len(choice.limits)
    one_each = csr_array((np.ones(count), (choice.owner, np.arange(count))), shape=(choice.owners, count))
    sums = np.concatenate((choice.takes, choice.wants))
    most = np.abs(sums).max(axis=1)
    scale = 1 / np.where(most > 0, most, 1.0)
    over = diags_array(scale) @ block_diag((csr_array((len(choice.tops), 0)), -eye_array(soft)))
    done = linprog(
        np.concatenate((choice.costs, np.full(soft, choice.weight))),
        A_ub=hstack([csr_array(sums * scale[:, None]), over], format="csr"),
        b_ub=np.concatenate((choice.tops, choice.limits)) * scale,
        A_eq=hstack([one_each, csr_array((choice.owners, soft))], format="csr"),
        b_eq=np.ones(choice.owners),
        method="highs-ds",
    )
    if done.x is None:
        return np.zeros(count), choice.costs
    return done.x[:count], done.lower.marginals[:count]


def _rounded(choice: Choice, shares: Floats) -> Indexes:
    """The best plan in which everybody has one of the options that it has shares of."""
    rows = choice.rows()
    options = _by_owner(choice, shares > SHARE)
    least = np.array([each[np.argmin(rows[1, each])] for each in options])
    mixed = [owner for owner, each in enumerate(options) if len(each) > 1]
    sums = rows[:, np.delete(least, mixed)].sum(axis=1)[:, None]
    picks: Indexes = np.zeros((0, 1), dtype=np.int64)
    for owner in mixed:
        tried = options[owner] if sums.shape[1] * len(options[owner]) <= TRIED else least[owner : owner + 1]
        sums = (sums[:, :, None] + rows[:, tried][:, None, :]).reshape(len(rows), -1)
        picks = np.concatenate((np.repeat(picks, len(tried), axis=1), np.tile(tried, picks.shape[1])[None]))
    least[mixed] = picks[:, np.argmin(choice.judge(sums))]
    return least


def _by_owner(choice: Choice, chosen: NDArray[np.bool_]) -> list[Indexes]:
    """For each owner its options among `chosen`, or, where it has none there, all."""
    any_of = np.bincount(choice.owner, chosen, choice.owners) > 0
    held = np.flatnonzero(chosen | ~any_of[choice.owner])
    return np.split(held, np.searchsorted(choice.owner[held], np.arange(1, choice.owners)))


def _bettered(choice: Choice, chosen: Indexes, dearer: Floats) -> Indexes:
    """A plan, changed for one or two owners at a time while that makes it better."""
    rows = choice.rows()
    near = np.argsort(dearer, kind="stable")[:NEAR]
    one, two = np.triu_indices(len(near))
    same = (choice.owner[near[one]] == choice.owner[near[two]]) & (one != two)
    chosen = chosen.copy()
    for _ in range(MOVES):
        more = rows[:, near] - rows[:, chosen[choice.owner[near]]]
        changes = more[:, one] + np.where(one == two, 0.0, more[:, two])
        sums = rows[:, chosen].sum(axis=1)[:, None]
        costs = np.where(same, inf, choice.judge(sums + changes))
        best = int(np.argmin(costs))
        if costs[best] >= choice.judge(sums)[0] - EXACT:
            break
        for option in near[[one[best], two[best]]]:
            chosen[choice.owner[option]] = option
    return chosen
