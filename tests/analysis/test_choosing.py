"""The plan keeps every top, and is the best one or nearly, beside all plans that there are."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.analysis.choosing import Choice, choose


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    """Up to four owners of up to four options; the least of all fit."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    count, tops, wants = sum(sizes), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    work = random.integers(0, 20, count).astype(float)
    takes = np.array([work * random.integers(0, 3) + (0 if row else 1) for row in range(tops)])
    least = np.array([takes[:, owner == one].min(axis=1) for one in range(len(sizes))]).sum(axis=0)
    return Choice(
        owner,
        random.random(count) / (1 + work),
        takes,
        least + random.integers(0, 30, tops) * draw(st.sampled_from([0.0, 0.3, 1.0])),
        random.random((wants, count)),
        random.random(wants) * len(sizes),
        1000.0,
    )


def all_plans(choice: Choice) -> np.ndarray:
    """The cost of every plan."""
    options = [np.flatnonzero(choice.owner == one) for one in range(choice.owners)]
    plans = np.array(list(product(*options))).T
    return choice.judge(choice.rows()[:, plans].sum(axis=1))


@given(choices())
def test_no_top_is_broken_and_nearly_no_plan_is_better(choice: Choice) -> None:
    chosen = choose(choice)
    assert [int(one) for one in choice.owner[chosen]] == list(range(choice.owners))
    (mine,) = choice.judge(choice.rows()[:, chosen].sum(axis=1)[:, None])
    best = float(all_plans(choice).min())
    assert np.isfinite(mine)
    assert mine <= best + 0.35 * abs(best) + 1e-6


def test_the_same_is_chosen_again() -> None:
    random = np.random.default_rng(5)
    owner = np.repeat(np.arange(300), 20)
    work = np.tile(np.arange(1.0, 21.0), 300)
    costs = random.random(6000) / work
    choice = Choice(owner, costs, work[None], np.array([1500.0]), np.zeros((0, 6000)), np.zeros(0), 1.0)
    first = choose(choice)
    assert np.array_equal(first, choose(choice))
    assert work[first].sum() <= 1500
    assert work[first].sum() > 1490, "what may be done is done"
