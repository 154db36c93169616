"""Retention against what Proxmox Backup Server does, and what must hold for any points and any rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.config.jobs import KeepByAge
from vmcellar.policy.retention import CLOCKS_APART, Moment, Rules, Verdict, decide

DAY = 86400
LATER = 9e9
WEEK_OF_FOUR = ["2019-12-02T11:59:15", "2019-12-03T11:59:15", "2019-12-04T11:59:15", "2019-12-04T12:59:15"]
TWO_YEARS = [
    "2018-11-15T11:59:15", "2019-11-15T11:59:15", "2019-11-21T11:59:15", "2019-11-22T11:59:15", "2019-11-29T11:59:15",
    "2019-12-01T11:59:15", "2019-12-02T11:59:15", "2019-12-03T11:59:15", "2019-12-04T11:59:15",
]  # fmt: skip
HOURS = [f"2019-11-15T{time}:15" for time in ("09:39", "10:49", "10:59", "11:39", "11:49", "11:59")]


def moment(text: str) -> Moment:
    return Moment(text, datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def kept(texts: list[str], **rules: int) -> list[str]:
    """The points that stay, oldest first."""
    verdicts = decide([moment(text) for text in texts], KeepByAge(**rules), now=LATER)
    return [text for text in texts if verdicts[text].keep]


@pytest.mark.parametrize(
    ("texts", "rules", "expected"),
    [
        (HOURS, {"hourly": 3}, [HOURS[0], HOURS[2], HOURS[5]]),
        (HOURS, {"hourly": 2}, [HOURS[2], HOURS[5]]),
        (TWO_YEARS, {"daily": 1}, TWO_YEARS[8:]),
        (TWO_YEARS, {"last": 1, "daily": 1}, TWO_YEARS[7:]),
        (TWO_YEARS, {"daily": 1, "weekly": 1}, [TWO_YEARS[5], TWO_YEARS[8]]),
        (TWO_YEARS, {"daily": 1, "weekly": 1, "monthly": 1}, [TWO_YEARS[3], TWO_YEARS[5], TWO_YEARS[8]]),
        (TWO_YEARS, {"monthly": 1, "yearly": 1}, [TWO_YEARS[0], TWO_YEARS[8]]),
        (WEEK_OF_FOUR, {"last": 4}, WEEK_OF_FOUR),
        (WEEK_OF_FOUR, {"last": 3}, WEEK_OF_FOUR[1:]),
        (WEEK_OF_FOUR, {"last": 1}, WEEK_OF_FOUR[3:]),
        (WEEK_OF_FOUR, {"last": 2, "daily": 2}, WEEK_OF_FOUR),
        (WEEK_OF_FOUR, {"daily": 3}, [WEEK_OF_FOUR[0], WEEK_OF_FOUR[1], WEEK_OF_FOUR[3]]),
        (WEEK_OF_FOUR, {"daily": 2}, [WEEK_OF_FOUR[1], WEEK_OF_FOUR[3]]),
        (WEEK_OF_FOUR, {"weekly": 5}, WEEK_OF_FOUR[3:]),
        (WEEK_OF_FOUR, {"daily": 1, "weekly": 5}, WEEK_OF_FOUR[3:]),
        (WEEK_OF_FOUR, {"monthly": 6}, WEEK_OF_FOUR[3:]),
        (WEEK_OF_FOUR, {"yearly": 7}, WEEK_OF_FOUR[3:]),
        (WEEK_OF_FOUR, {"weekly": 5, "monthly": 6, "yearly": 7}, WEEK_OF_FOUR[3:]),
    ],
)
def test_known_cases_of_proxmox_backup_server(texts: list[str], rules: dict[str, int], expected: list[str]) -> None:
    """What that server keeps for these points and rules."""
    assert kept(texts, **rules) == expected


def test_the_published_example_keeps_ten_years_of_daily_backups() -> None:
    """Its documentation: last 3, daily 13, weekly 8, monthly 11, yearly 9 keep at least two weeks of daily points, two
    months of weekly ones, a year of monthly ones and ten years in all.
    """
    end = datetime(2029, 12, 31, 2, tzinfo=UTC)
    days = [end - timedelta(days=number) for number in range(12 * 365)]
    moments = [Moment(f"{day:%Y-%m-%d}", day.timestamp()) for day in days]
    rules = KeepByAge(last=3, daily=13, weekly=8, monthly=11, yearly=9)
    verdicts = decide(moments, rules, now=end.timestamp())
    stay = [datetime.fromisoformat(point).replace(tzinfo=UTC) for point, verdict in verdicts.items() if verdict.keep]
    assert len(stay) == 3 + 13 + 8 + 11 + 9
    assert stay[:16] == [day.replace(hour=0) for day in days[:16]]
    assert all(day.weekday() == 6 for day in stay[16:24])  # the newest of an ISO week is its Sunday
    assert len({(day.year, day.month) for day in stay}) >= 12
    assert stay[-1].year == 2029 - 9 - 1


def test_periods_without_points_do_not_count() -> None:
    texts = ["2020-01-01T00:00:00", "2023-06-01T00:00:00", "2024-02-29T00:00:00"]
    assert kept(texts, daily=3) == texts


def test_weeks_at_the_turn_of_the_year_are_iso_weeks() -> None:
    texts = ["2019-12-29T01:00:00", "2019-12-30T01:00:00", "2020-01-05T01:00:00"]  # week 52, then twice 2020-W01
    assert kept(texts, weekly=2) == [texts[0], texts[2]]


def test_a_day_is_that_of_the_time_zone() -> None:
    texts = ["2024-03-30T22:30:00", "2024-03-30T23:30:00"]
    moments = [moment(text) for text in texts]
    keep = {z: [v.keep for v in decide(moments, KeepByAge(daily=9), now=LATER, zone=z).values()]
            for z in (UTC, ZoneInfo("Europe/Berlin"))}  # fmt: skip
    assert keep == {UTC: [True, False], ZoneInfo("Europe/Berlin"): [True, True]}


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    zone = ZoneInfo("Europe/Berlin")
    moments = [moment("2024-10-27T00:30:00"), moment("2024-10-27T01:30:00")]  # 02:30 local time, both
    assert all(verdict.keep for verdict in decide(moments, KeepByAge(hourly=2), now=LATER, zone=zone).values())


def test_plain_days() -> None:
    moments = [Moment("old", 0), Moment("edge", DAY), Moment("young", DAY + 1)]
    verdicts = decide(moments, 30 * DAY, now=31 * DAY)
    assert [point for point, verdict in verdicts.items() if verdict.keep] == ["young"]
    assert decide(moments[:1], 30 * DAY, now=1000 * DAY)["old"].why == "the newest"


@pytest.mark.parametrize("rules", [KeepByAge(last=1), KeepByAge(daily=1, yearly=1), 2 * DAY])
def test_points_of_a_clock_that_was_ahead_stay_and_take_no_place_of_those_made_since(rules: Rules) -> None:
    now = 1000.5 * DAY
    moments = [Moment("old", 1 * DAY), Moment("day before", now - DAY), Moment("new", now - 60)]
    right = decide(moments, rules, now=now)
    ahead = [Moment("next year", now + 365 * DAY), Moment("tomorrow", now + DAY)]
    verdicts = decide([*moments, *ahead], rules, now=now)
    assert {name: verdicts[name] for name in right} == right
    assert {verdicts[each.id] for each in ahead} == {Verdict(True, "of a later time than this host's clock has")}


def test_a_host_whose_clock_is_behind_drops_nothing_but_what_is_old_by_it() -> None:
    verdicts = decide([Moment("a", 10 * DAY), Moment("b", 11 * DAY)], KeepByAge(last=1), now=DAY)
    assert all(verdict.keep for verdict in verdicts.values())


def test_clocks_of_hosts_may_differ_a_little() -> None:
    moments = [Moment("old", 0), Moment("new", DAY + CLOCKS_APART)]
    assert not decide(moments, KeepByAge(last=1), now=DAY)["old"].keep


@pytest.mark.parametrize("rules", [None, KeepByAge()])
def test_no_rules_keep_everything(rules: Rules | None) -> None:
    assert all(verdict.keep for verdict in decide([moment(text) for text in TWO_YEARS], rules, now=9e9).values())


COUNTS = st.integers(0, 4)
RULES = st.one_of(
    st.none(),
    st.integers(1, 400 * DAY),
    st.builds(KeepByAge, last=COUNTS, hourly=COUNTS, daily=COUNTS, weekly=COUNTS, monthly=COUNTS, yearly=COUNTS),
)
ZONES = st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Pacific/Apia"), ZoneInfo("America/New_York")])
START = 1_700_000_000
TIMES = st.lists(st.integers(0, 900 * 24).map(lambda hours: START + hours * 3600 + 7.5), max_size=40)


@given(TIMES, RULES, ZONES, st.data())
def test_what_holds_for_any_points_and_rules(
    times: list[float], rules: Rules | None, zone: ZoneInfo, data: st.DataObject
) -> None:
    moments = [Moment(f"{number:03}", time) for number, time in enumerate(times)]
    pinned = set(data.draw(st.lists(st.sampled_from([m.id for m in moments] or [""]), max_size=3)))
    now = START + 900 * DAY
    verdicts = decide(moments, rules, now=now, zone=zone, pinned=pinned)
    assert set(verdicts) == {m.id for m in moments}
    assert all(verdicts[point].keep for point in pinned if point in verdicts)
    if moments:
        newest = max(moments, key=lambda m: (m.time, m.id))
        assert verdicts[newest.id].keep  # so a VM is never emptied
    shuffled = data.draw(st.permutations(moments))
    assert decide(shuffled, rules, now=now, zone=zone, pinned=pinned) == verdicts
    again = decide([m for m in moments if verdicts[m.id].keep], rules, now=now, zone=zone, pinned=pinned)
    assert all(verdict.keep for verdict in again.values())  # pruning twice drops nothing more


NAMES = st.sampled_from(["last", "hourly", "daily", "weekly", "monthly", "yearly"])
GENERATIONS = st.builds(lambda name, count: KeepByAge(**{name: count}), NAMES, COUNTS)
ONE_RULE = st.one_of(st.integers(1, 400 * DAY), GENERATIONS)


@given(TIMES, ONE_RULE, st.integers(1, 10**8))
def test_what_was_dropped_stays_dropped_as_time_goes_on(times: list[float], rules: Rules | None, later: int) -> None:
    """Monotone in time: new points and a later hour never bring a dropped point back.

    Of one rule, that is. Several together do not have this, in Proxmox Backup Server neither: a period in which an
    earlier rule keeps a point is passed over by a later one, and a new point may move the earlier rule's place.
    """
    moments = [Moment(f"{number:03}", time) for number, time in enumerate(times)]
    now = START + 900 * DAY
    before = decide(moments, rules, now=now)
    after = decide([*moments, Moment("new", now + later)], rules, now=now + later)
    brought_back = {m.id for m in moments if after[m.id].keep and not before[m.id].keep}
    assert not brought_back


@given(TIMES, st.sampled_from(["last", "hourly", "daily", "weekly", "monthly", "yearly"]), st.integers(1, 5))
def test_one_rule_with_a_larger_number_keeps_no_less(times: list[float], name: str, count: int) -> None:
    moments = [Moment(f"{number:03}", time) for number, time in enumerate(times)]
    few = decide(moments, KeepByAge(**{name: count}), now=LATER)
    more = decide(moments, KeepByAge(**{name: count + 1}), now=LATER)
    assert all(more[point].keep for point, verdict in few.items() if verdict.keep)
