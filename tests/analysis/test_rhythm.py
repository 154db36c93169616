"""A day with a pause: as many runs, fewer breaches, no more time over the RPO; never where policy would be broken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.analysis.judging import Need, judge, spread_runs
from vmcellar.analysis.loads import Load
from vmcellar.analysis.rhythm import rhythms, turned

HOUR = 3600.0


def load(per_day: float = 10e9, fails: float = 0.01, rest: float = 300.0) -> Load:
    return Load("web", np.linspace(0, per_day, 1441), rest, 1e-8, 0.1, fails, True)


def gaps(starts: tuple[int, ...]) -> list[int]:
    return [(b - a) % 1440 or 1440 for a, b in zip(starts, (*starts[1:], starts[0]), strict=True)]


@pytest.mark.parametrize(("runs", "hours"), [(12, 4), (6, 8), (4, 12), (18, 4)])
def test_a_pause_makes_as_many_runs_break_the_rpo_less_often(runs: int, hours: int) -> None:
    need = Need("web", rpo=hours * HOUR)
    even, *others = rhythms(runs, need, load())
    assert even == spread_runs(runs, need)
    was, will = (judge(load(), starts, need.rpo) for starts in (even, others[0]))
    assert len(others[0]) == runs
    assert will.breaches < 0.7 * was.breaches
    assert will.late_hours < 1.3 * was.late_hours
    assert will.seconds == was.seconds


def test_there_is_none_where_it_would_help_nobody() -> None:
    assert len(rhythms(12, Need("web"), load())) == 1, "no RPO"
    assert len(rhythms(12, Need("web", rpo=4 * HOUR, window=(1320, 360)), load())) == 1, "in a window runs end with it"
    assert len(rhythms(13, Need("web", rpo=4 * HOUR), load())) == 1, "even ones leave room as they are"
    assert len(rhythms(2, Need("web", rpo=24 * HOUR), load())) == 1, "both gaps are a day, whatever they are"
    assert len(rhythms(6, Need("web", rpo=4 * HOUR), load())) == 1, "no failure can be mended in time"


@given(st.integers(1, 96), st.integers(1, 60), st.floats(1, 3000), st.floats(0, 1e12))
def test_a_pause_keeps_the_rpo_while_nothing_fails(runs: int, hours: int, rest: float, per_day: float) -> None:
    some = load(per_day, 0.0, rest)
    for starts in rhythms(runs, Need("web", rpo=hours * HOUR), some)[1:]:
        assert len(set(starts)) == runs
        assert sum(gaps(starts)) == 1440
        pause = max(gaps(starts)) * 60
        assert pause + float(some.seconds(np.array([per_day * pause / 86400]))[0]) <= hours * HOUR + 1e-6


@given(st.lists(st.integers(0, 1439), min_size=1, max_size=30, unique=True))
def test_turning_a_day_changes_no_gap(starts: list[int]) -> None:
    ordered = tuple(sorted(starts))
    ways = turned(ordered)
    assert ways[0] == ordered
    for way in ways:
        assert way == tuple(sorted(way))
        assert sorted(gaps(way)) == sorted(gaps(ordered))
