"""Which points are proven first."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from vmcellar.config.jobs import BackupJob
from vmcellar.policy.governing import governing_job
from vmcellar.policy.risk import DAY, Facts, ranked, risk, wants_drill

BASE = Facts("20270115T080000Z-f81c294b", "web", DAY, DAY, DAY, 0, 1, newest=False)


def order(*facts: Facts) -> list[str]:
    return [each.facts.vm for each in ranked(facts)]


def test_each_fact_counts_in_its_direction() -> None:
    more = {
        "older proof": replace(BASE, proven=2 * DAY),
        "never": replace(BASE, proven=None),
        "increments": replace(BASE, increments=9),
        "importance": replace(BASE, importance=5),
        "newest": replace(BASE, newest=True),
        "anomaly": replace(BASE, anomaly=True),
        "damage": replace(BASE, damage=True),
        "tier": replace(BASE, tier="cold"),
    }
    for name, facts in more.items():
        assert risk(facts).score > risk(BASE).score, name
    assert risk(replace(BASE, failed=True)).score < risk(BASE).score


def test_a_new_point_comes_before_one_proven_this_week_and_after_one_proven_last_month() -> None:
    new, week, month = (
        replace(BASE, vm="new", age=0, proven=None),
        replace(BASE, vm="week", proven=7 * DAY),
        replace(BASE, vm="month", proven=31 * DAY),
    )
    assert order(week, new, month) == ["month", "new", "week"]


def test_why_is_told() -> None:
    facts = replace(BASE, proven=None, increments=3, importance=2, newest=True, failed=True)
    facts = replace(facts, anomaly=True, damage=True, tier="cold")
    assert risk(facts).why == (
        "never proven, 3 incrementals since a full read, importance 2, newest of its VM, an anomaly of its VM is not "
        "judged, another point of its VM is bad, on the cold tier, known to be bad"
    )


ages = st.one_of(st.none(), st.floats(0, 1e9))


@given(st.lists(st.builds(Facts, st.text(max_size=3), st.text(max_size=3), st.floats(0, 1e9), ages, ages,
                          st.integers(0, 1000), st.integers(1, 10), st.booleans(), st.booleans())))  # fmt: skip
def test_every_point_is_ranked_once_whatever_the_order(facts: list[Facts]) -> None:
    scores = [each.score for each in ranked(facts)]
    assert scores == sorted(scores, reverse=True)
    assert sorted(map(repr, facts)) == sorted(repr(each.facts) for each in ranked(facts))
    assert [each.score for each in ranked(facts[::-1])] == scores


def test_only_the_newest_is_drilled_and_only_when_due() -> None:
    newest = replace(BASE, newest=True)
    assert wants_drill(newest, DAY)
    assert not wants_drill(newest, 2 * DAY)
    assert wants_drill(replace(newest, drilled=None), 2 * DAY)
    assert not wants_drill(replace(BASE, drilled=None), 0)


def test_the_governing_job() -> None:
    web, every = BackupJob(name="web", domains=("web*",)), BackupJob(name="every")
    assert governing_job((web, every), "web1", "every") == every
    assert governing_job((web, every), "db1") == every
    assert governing_job((web, every), "web1") is None, "two jobs select it: none is guessed"
    assert governing_job((web,), "db1", "gone") is None
    prod = BackupJob(name="prod", domains=("tag:prod",))
    assert governing_job((web, prod), "web1") is None, "it may carry the tag"
    assert governing_job((web, prod), "web1", "prod") == prod
