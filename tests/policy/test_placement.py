"""Where a pack should lie: ages, copies, archives, and when going deeper does not pay."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.config.placement import Placement
from vmcellar.config.prices import AWS_PRICES, Prices
from vmcellar.policy.placement import Held, Move, Pack, decide, sites_of

DAY = 86400.0
NOW = 1_800_000_000.0
MIB = 1 << 20
FREE = {name: Prices() for name in ("hot", "warm", "cold")}
RULES = Placement.model_validate({"hot": "7d", "warm": "30d", "cold": "rest"})


def pack(age: float | None, *tiers: str, size: int = 64 * MIB, needed: float = inf) -> Pack:
    """A pack whose youngest point is `age` days old, and which is needed for `needed` more days."""
    youngest = None if age is None else NOW - age * DAY
    return Pack("data/ab/ab", size, tiers or ("hot",), youngest, NOW + needed * DAY)


def ask(found: Pack, prices: dict[str, Prices] | None = None, copies: int = 1, rules: Placement = RULES) -> object:
    """What is to be done, in short: (copy to, delete from), "held", or None."""
    verdict = decide(found, sites_of(rules, FREE | (prices or {})), copies, NOW)
    if isinstance(verdict, Move):
        return verdict.copy, verdict.drop
    return "held" if isinstance(verdict, Held) else None


@pytest.mark.parametrize(
    ("age", "tiers", "expected"),
    [
        (0, ("hot",), None),
        (6.9, ("hot",), None),
        (7, ("hot",), (("warm",), ("hot",))),
        (29.9, ("warm",), None),
        (30, ("warm",), (("cold",), ("warm",))),
        (400, ("hot",), (("cold",), ("hot",))),
        (400, ("cold",), None),
        (1, ("cold",), (("hot",), ("cold",))),  # a young point needs it again
        (10, ("hot", "warm"), ((), ("hot",))),  # a run died between copy and delete
        (None, ("hot",), None),  # garbage, or pinned
        (400, (), None),  # lost
    ],
)
def test_the_age_of_the_youngest_point_decides(age: float | None, tiers: tuple[str, ...], expected: object) -> None:
    assert ask(Pack("data/ab/ab", MIB, tiers, None if age is None else NOW - age * DAY)) == expected


@pytest.mark.parametrize(
    ("age", "tiers", "expected"),
    [
        (1, ("hot",), (("warm",), ())),
        (1, ("hot", "warm"), None),
        (10, ("hot", "warm"), (("cold",), ("hot",))),
        (50, ("warm", "cold"), None),  # nothing is deeper: the second copy is the nearest before it
        (50, ("cold",), (("warm",), ())),
    ],
)
def test_two_copies(age: float, tiers: tuple[str, ...], expected: object) -> None:
    assert ask(pack(age, *tiers), copies=2) == expected


def test_more_copies_than_tiers_are_as_many_as_there_are() -> None:
    two = Placement.model_validate({"hot": "7d", "cold": "rest"})
    sites = sites_of(two, {"hot": Prices(), "cold": Prices()})
    assert decide(pack(1), sites, 3, NOW) == Move("data/ab/ab", 64 * MIB, ("hot",), ("cold",), (), "a copy is missing")
    assert decide(pack(1, "hot", "cold"), sites, 3, NOW) is None


def test_an_archived_pack_waits_for_its_thaw_and_keeps_its_copy() -> None:
    cold = {"cold": AWS_PRICES["GLACIER"]}
    assert ask(pack(1, "cold"), cold) == "held"
    assert ask(pack(1, "hot", "cold"), cold) is None, "the copy in the archive is paid for anyway"
    assert ask(pack(60, "hot", "cold"), cold) == ((), ("hot",)), "and spares the way back"


def test_what_retention_drops_before_the_minimum_time_is_over_stays() -> None:
    cold = {"cold": Prices(minimum_days=180)}
    assert ask(pack(40, "warm", needed=100), cold) is None
    assert ask(pack(40, "warm", needed=200), cold) == (("cold",), ("warm",))
    assert ask(pack(40, "hot", needed=100), cold) == (("warm",), ("hot",)), "the nearest that pays"


def test_with_prices_the_cheaper_way_is_taken() -> None:
    prices = {"warm": AWS_PRICES["STANDARD"], "cold": AWS_PRICES["DEEP_ARCHIVE"]}
    assert ask(pack(40, "warm", needed=100), prices) == (("cold",), ("warm",)), "180 days there cost less than 100 here"
    assert ask(pack(40, "warm", needed=5), prices) is None, "5 days here cost less than 180 there"
    small = pack(40, "warm", size=4096)
    assert ask(small, prices) is None, "the overhead of an archived object costs more than it saves"
    early = {"warm": AWS_PRICES["GLACIER_IR"], "cold": AWS_PRICES["DEEP_ARCHIVE"]}
    assert ask(pack(31, "warm", needed=60), early) is None, "66 of 90 days in warm would be paid for nothing"
    assert ask(pack(31, "warm"), early) == (("cold",), ("warm",))


@pytest.mark.parametrize(
    "wrong", [{}, {"hot": "7d"}, {"hot": "rest", "cold": "rest"}, {"hot": "30d", "warm": "7d", "cold": "rest"}]
)
def test_rules_that_say_nothing_sensible_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="tier"):
        Placement.model_validate(wrong)


def test_packs_leave_hot_at_once_where_no_rule_names_it() -> None:
    rules = Placement.model_validate({"warm": "30d", "cold": "rest"})
    assert ask(pack(0, "hot"), rules=rules) == (("warm",), ("hot",))


PRICES = st.sampled_from([Prices(), *AWS_PRICES.values()])
TIERS = st.lists(st.sampled_from(["hot", "warm", "cold"]), min_size=1, unique=True)


@given(
    st.floats(0, 1000), st.integers(1, 1 << 30), TIERS, st.floats(0, 1000) | st.just(inf), st.integers(1, 3),
    st.fixed_dictionaries({"hot": PRICES, "warm": PRICES, "cold": PRICES}),
)  # fmt: skip
def test_a_pack_never_loses_its_last_copy_and_comes_to_rest(
    age: float, size: int, tiers: list[str], needed: float, copies: int, prices: dict[str, Prices]
) -> None:
    sites = sites_of(RULES, prices)
    found = Pack("data/ab/ab", size, tuple(t for t in ("hot", "warm", "cold") if t in tiers), NOW - age * DAY, needed)
    for _ in range(3):
        verdict = decide(found, sites, copies, NOW)
        if not isinstance(verdict, Move):
            return
        left = (set(found.tiers) | set(verdict.copy)) - set(verdict.drop)
        assert len(left) >= min(copies, 3)
        assert not set(verdict.copy) & set(found.tiers)
        assert set(verdict.drop) <= set(found.tiers)
        kept = tuple(t for t in ("hot", "warm", "cold") if t in left)
        found = Pack(found.key, size, kept, found.youngest, needed)
    raise AssertionError("it is moved again and again")
