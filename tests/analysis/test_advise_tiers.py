"""Advice keeps what tiers can take and hold whenever a plan inside policy does, weighs their prices, and says so."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcellar.analysis import spending
from vmcellar.analysis.advise import Advice, advise
from vmcellar.analysis.estate import least_runs
from vmcellar.analysis.judging import Host, Kept, Need, Starts, spread_runs
from vmcellar.analysis.loads import DAY_MINUTES, Load
from vmcellar.analysis.placing import Grid
from vmcellar.analysis.spending import HORIZON, RUN_BYTES, Store, cheapest, held, money
from vmcellar.config.prices import AWS_PRICES, Prices

HOUR = 3600.0
GB = 10**9
MIB = 1 << 20
SIZES = (0.01 * GB, 1.0 * GB, 60.0 * GB)


def load(vm: str, per_day: float = 10 * GB, speed: float = 100e6, share: float = 0.5, fails: float = 0.03) -> Load:
    return Load(vm, np.linspace(0, per_day, 1441), 6.0, 1 / speed, 0.1, fails, True, share)


def store(name: str = "hot", age: float = 0.0, prices: Prices | None = None, **limits: float) -> Store:
    return Store(name, age, prices or Prices(), **limits)


needs = st.lists(
    st.builds(
        Need,
        vm=st.just(""),
        rpo=st.sampled_from([None, 2 * HOUR, 8 * HOUR, 26 * HOUR]),
        window=st.sampled_from([None, None, (1320, 360), (60, 240)]),
        kept=st.builds(
            Kept, st.sampled_from([2.0, 30.0, inf]), st.sampled_from([None, 7, 40]), st.sampled_from([0.0, 20.0, 300.0])
        ),
        breach_cost=st.sampled_from([None, 0.001, 100.0]),
        fixed=st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=6,
).map(lambda every: [replace(need, vm=f"vm{number}") for number, need in enumerate(every)])


@st.composite
def estates(draw: st.DrawFn) -> tuple[list[Need], dict[str, Load], dict[str, Starts]]:
    asked = draw(needs)
    loads = {
        need.vm: load(need.vm, draw(st.sampled_from(SIZES)), fails=draw(st.sampled_from([0.002, 0.1])))
        for need in asked
    }
    return asked, loads, {need.vm: spread_runs(draw(st.sampled_from([1, 4, 13, 24])), need) for need in asked}


def runs_of(advice: Advice) -> dict[str, int]:
    return {one.vm: len(one.after) for one in advice.changes}


def taken(asked: list[Need], loads: dict[str, Load], runs: dict[str, int], store: Store) -> list[float]:
    return [
        sum(ceiling.takes(loads[need.vm], need.kept, runs[need.vm]) for need in asked)
        for ceiling in spending.ceilings_of([store])
    ]


@settings(max_examples=40, deadline=None)
@given(estates(), st.floats(0.0, 2.0), st.booleans(), st.sampled_from(["STANDARD", "STANDARD_IA", ""]))
def test_what_a_tier_can_hold_and_moves_can_bring_is_kept_or_said(
    estate: tuple[list[Need], dict[str, Load], dict[str, Starts]], part: float, moves: bool, prices: str
) -> None:
    asked, loads, current = estate
    fewest = {n.vm: len(current[n.vm]) if n.fixed else least_runs(n, loads[n.vm]) for n in asked}
    most = {need.vm: max(fewest[need.vm], 48) for need in asked}
    open_end = store("cold", 7.0, moved=0.0) if moves else store("hot", room=0.0)
    (low,), (high,) = (taken(asked, loads, runs, open_end) for runs in (fewest, most))
    limit = low + part * (high - low) - 1 if part < 1 else low * (2 - part) - 1
    first = store("hot", prices=AWS_PRICES.get(prices))
    limited = [first, replace(open_end, moved=limit)] if moves else [replace(first, room=limit)]
    advice = advise(asked, [Host(concurrent=64)], loads, current, budget=3.0, stores=limited)
    (used,) = taken(asked, loads, runs_of(advice), limited[-1])
    name = limited[-1].name
    if low <= limit:
        assert used <= limit, "a plan within policy keeps it"
        assert not [conflict for conflict in advice.conflicts if conflict.startswith(f"{name}:")]
    else:
        (today,) = taken(asked, loads, {vm: len(starts) for vm, starts in current.items()}, limited[-1])
        assert used <= max(low, today) * (1 + 1e-9), "what cannot be kept is not made worse"
        assert [conflict for conflict in advice.conflicts if conflict.startswith(f"{name}:")]
    for need in asked:
        assert runs_of(advice)[need.vm] >= min(fewest[need.vm], len(current[need.vm])), "nobody starves"
        if need.fixed:
            assert runs_of(advice)[need.vm] == len(current[need.vm])


rates = st.sampled_from([inf, 200e6, 60e6, 30e6])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([5e6, 20e6, 50e6])), min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 23), rates), min_size=1, max_size=4),
)
def test_no_minute_gets_more_than_a_tier_may_take_where_a_plan_can_help_it(
    vms: list[tuple[int, float]], changes: list[tuple[int, float]]
) -> None:
    by_hour = [inf] * 24
    for hour, rate in sorted(changes):
        by_hour[hour:] = [rate] * (24 - hour)
    writes = tuple(by_hour[minute // 60] for minute in range(DAY_MINUTES))
    asked = [Need(f"vm{n}", rpo=24 * HOUR / runs + HOUR, fixed=False) for n, (runs, _) in enumerate(vms)]
    loads = {n.vm: load(n.vm, 20 * GB, share=rate / 100e6, fails=0.0) for n, (_, rate) in zip(asked, vms, strict=True)}
    current = {need.vm: spread_runs(runs, need, 600) for need, (runs, _) in zip(asked, vms, strict=True)}
    advice = advise(asked, [Host(concurrent=4, writes=writes)], loads, current, budget=1.0)
    grid = Grid(4, writes)
    for one in advice.changes:
        grid.add(one.after, loads[one.vm])
    if len(grid.fast):
        assert [conflict for conflict in advice.conflicts if "to hot, which may take" in conflict]
        assert not _some_plan_helps(loads, {one.vm: len(one.after) for one in advice.changes}, writes)


def _some_plan_helps(loads: dict[str, Load], runs: dict[str, int], writes: tuple[float, ...]) -> bool:
    """By trying all starts, a quarter of an hour apart."""
    ways = [
        [(vm, spread_runs(count, Need(vm), first)) for first in range(0, 1440 // count, 15)]
        for vm, count in runs.items()
    ]
    for plan in product(*ways):
        grid = Grid(64, writes)
        for vm, starts in plan:
            grid.add(starts, loads[vm])
        if not len(grid.fast):
            return True
    return False


def test_runs_go_where_a_tier_takes_what_they_write_and_the_table_says_so() -> None:
    writes = tuple(20e6 if 480 <= minute < 1080 else 1e9 for minute in range(DAY_MINUTES))
    need = Need("web", rpo=26 * HOUR)
    advice = advise([need], [Host(writes=writes)], {"web": load("web", 60 * GB)}, {"web": (600,)}, budget=1.0)
    (one,) = advice.changes
    assert not 480 <= one.after[0] < 1080
    assert one.decided == ("at other times hot would get more at once than it may",)
    assert one.decided[0] in one.why


def test_a_run_that_alone_is_too_fast_for_a_tier_is_named_with_what_helps() -> None:
    writes = (20e6,) * DAY_MINUTES
    advice = advise([Need("web")], [Host(writes=writes)], {"web": load("web")}, {"web": (600,)})
    (said,) = advice.conflicts
    assert said.startswith("web: it alone writes")
    assert "a lower bandwidth: of its job" in said


def test_a_tier_that_would_be_full_gets_fewer_runs_and_the_table_says_so() -> None:
    need = Need("web", rpo=12 * HOUR, kept=Kept(30.0, None, 13 * 30.0))
    room = RUN_BYTES * 10.0 * HORIZON
    loads, current = {"web": load("web")}, {"web": spread_runs(13, need)}
    free = advise([need], [Host()], loads, current, budget=1.0, stores=[store()])
    full = advise([need], [Host()], loads, current, budget=1.0, stores=[store(room=room)])
    assert runs_of(free)["web"] > 10 >= runs_of(full)["web"]
    (one,) = full.changes
    assert one.decided == ("with more runs hot would be full within 30 days",)
    assert "hot would be full" in one.why


def test_a_schedule_that_would_stay_as_it_gains_little_goes_all_the_same_where_it_fills_a_tier() -> None:
    need = Need("web", rpo=8 * HOUR)
    loads, current = {"web": load("web", fails=0.002)}, {"web": spread_runs(20, need)}

    def runs(room: float) -> int:
        return runs_of(advise([need], [Host()], loads, current, 1.0, stores=[store(room=room)]))["web"]

    assert runs(RUN_BYTES * HORIZON * 20.0) == 20
    assert runs(RUN_BYTES * HORIZON * 19.0) == 18


def test_a_tier_that_is_full_whatever_is_done_is_said_and_not_made_worse() -> None:
    need = Need("web", rpo=12 * HOUR)
    loads, current = {"web": load("web")}, {"web": spread_runs(4, need)}
    advice = advise([need], [Host()], loads, current, budget=3.0, stores=[store(room=-1e9)])
    assert any(said.startswith("hot: full within 30 days") for said in advice.conflicts)
    assert runs_of(advice)["web"] <= 4


def test_moves_that_cannot_bring_all_are_said_by_tier() -> None:
    need = Need("web", rpo=12 * HOUR)
    stores = [store(), store("cold", 7.0, moved=1e9)]
    advice = advise([need], [Host()], {"web": load("web")}, {"web": (0, 720)}, stores=stores)
    assert any(said.startswith("cold: 3.73 GiB a day more come to it than its moves:") for said in advice.conflicts)
    short = replace(need, kept=Kept(days=5.0))
    advice = advise([short], [Host()], {"web": load("web")}, {"web": (0, 720)}, stores=stores)
    assert advice.conflicts == (), "what goes before it is old enough is moved nowhere"


def test_a_price_decides_where_runs_cost_more_than_a_breach() -> None:
    def runs(prices: Prices, breach_cost: float | None) -> Advice:
        need = Need("web", rpo=8 * HOUR, kept=Kept(30.0), breach_cost=breach_cost)
        return advise(
            [need], [Host()], {"web": load("web")}, {"web": spread_runs(8, need)}, 2.0, stores=[store(prices=prices)]
        )

    dear = Prices(gb_month=0.02, put_1000=20.0)
    free, cheap, worth = runs(Prices(), None), runs(dear, 0.01), runs(dear, 1e9)
    assert runs_of(free) == runs_of(worth), "a breach that costs much is worth every run"
    assert runs_of(cheap)["web"] < runs_of(free)["web"]
    assert free.money is None
    assert cheap.money is not None
    assert cheap.money[0] > cheap.money[1] > 0
    (one,) = cheap.changes
    assert "more a month, which they are not worth" in one.why
    assert one.decided
    assert free.changes[0].decided == worth.changes[0].decided == ()


def test_money_is_requests_and_storage_until_points_go_and_a_minimum_time() -> None:
    one = load("web", per_day=32 * MIB, share=0.5)
    requests = store(prices=Prices(put_1000=1000.0))
    assert money(one, Kept(), 1, [requests]) == spending.RUN_OBJECTS + 1
    assert money(one, Kept(), 8, [requests]) == 8 * (spending.RUN_OBJECTS + 1)
    lying = store(prices=Prices(gb_month=1.0))
    month = money(one, Kept(30.0), 1, [lying])
    assert month == pytest.approx((16 * MIB + RUN_BYTES) / (1 << 30))
    assert money(one, Kept(15.0), 1, [lying]) == pytest.approx(month / 2)
    least = store(prices=Prices(gb_month=1.0, minimum_days=30))
    assert money(one, Kept(15.0), 1, [least]) == pytest.approx(month), "it is paid for until then"
    generations = Kept(30.0, 4)
    few, many = (money(one, generations, runs, [lying]) for runs in (4, 8))
    assert few == pytest.approx(many), "twice as many runs make room for points twice as soon"


def test_an_object_stays_on_the_nearer_tier_where_going_deeper_does_not_pay() -> None:
    near, deep = store(prices=Prices(gb_month=0.02)), store("cold", 7.0, Prices(gb_month=0.001, minimum_days=180))
    size = float(1 << 30)
    assert cheapest([near, deep], size, 10.0) == pytest.approx(cheapest([near], size, 10.0))
    assert cheapest([near, deep], size, 300.0) < 0.2 * cheapest([near], size, 300.0)


def test_points_that_retention_drops_meanwhile_take_no_room() -> None:
    assert held(Kept(), 4) == 4 * HORIZON
    assert held(Kept(10.0, None, 40.0), 4) == pytest.approx(40)
    assert held(Kept(60.0, None, 240.0), 4) == pytest.approx(240)
    assert held(Kept(60.0, 100, 100.0), 96) == 100
