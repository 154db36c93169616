"""Who is told of what is wrong: once each, and once when it is over; never lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.test_metrics import HOUR, START, point, proof, run
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.conditions import Condition, conditions, tier_conditions
from vmcellar.catalog.databases import SqliteFile
from vmcellar.catalog.metrics import standing
from vmcellar.catalog.models import Evidence
from vmcellar.catalog.notices import FILE, REFUSED_MOST, Notice, Notices
from vmcellar.config.jobs import BackupJob
from vmcellar.errors import PermanentError

REPOSITORY = "ab" * 16
SICK = Condition("web: RPO", "critical", "web: its newest verified point is 30 h old")
FULL = Condition("tier hot full", "critical", "tier hot: 1.0 GB are left")


OPS = ("mail of operations",)


def titles(notices: Notices) -> list[str]:
    told: list[str] = []

    def take(notice: Notice, _receiver: str) -> bool:
        told.append(f"{notice.title}: {notice.text}")
        return True

    notices.send(take)
    return told


def test_each_thing_is_told_once_and_once_when_it_is_over(tmp_path: Path) -> None:
    notices = Notices(tmp_path)
    assert notices.look([SICK], START, OPS) == ([SICK], {})
    assert titles(notices) == [f"vmcellar: web: RPO: {SICK.text}"]
    assert notices.look([Condition(SICK.key, "critical", "web: now 31 h old")], START + HOUR, OPS) == ([], {})
    assert titles(notices) == [], "the same thing, an hour on"
    began, over = notices.look([FULL], START + 2 * HOUR, OPS)
    assert (began, {key: told.since for key, told in over.items()}) == ([FULL], {SICK.key: START})
    told = titles(notices)
    said = f"over after 2.0 h: {SICK.text} (1 other things are still wrong)"
    assert told == [f"vmcellar: tier hot full: {FULL.text}", f"vmcellar: over: web: RPO: {said}"], "not all is well"
    assert set(notices.holding()) == {FULL.key}
    notices.look([], START + 3 * HOUR, OPS)
    assert titles(notices) == [f"vmcellar: all well again: over after 1.0 h: {FULL.text}"]


def test_what_no_receiver_took_is_kept_also_when_the_process_dies(tmp_path: Path) -> None:
    Notices(tmp_path).look([SICK, FULL], START, OPS)
    assert Notices(tmp_path).send(lambda _notice, _receiver: False) == (0, 2)

    def die_after_one(notice: Notice, _receiver: str) -> bool:
        if FULL.text in notice.text:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        Notices(tmp_path).send(die_after_one)
    assert titles(Notices(tmp_path)) == [f"vmcellar: tier hot full: {FULL.text}"]


def test_a_receiver_that_took_it_is_not_told_again_while_another_is_down(tmp_path: Path) -> None:
    notices = Notices(tmp_path)
    notices.look([SICK], START, ("mail", "hook"))
    told: list[str] = []

    def only_the_hook(_notice: Notice, receiver: str) -> bool:
        told.append(receiver)
        return receiver == "hook"

    assert [notices.send(only_the_hook) for _ in range(3)] == [(1, 1), (0, 1), (0, 1)]
    assert told.count("hook") == 1
    assert notices.send(lambda _notice, receiver: receiver == "mail") == (1, 0)


def test_a_receiver_that_is_down_is_tried_a_few_times_not_once_for_each_of_hundreds(tmp_path: Path) -> None:
    notices = Notices(tmp_path)
    notices.look([Condition(f"vm{n}: RPO", "critical", f"vm{n} is late") for n in range(100)], START, ("mail", "hook"))
    tried: list[str] = []

    def only_the_hook(_notice: Notice, receiver: str) -> bool:
        tried.append(receiver)
        return receiver == "hook"

    assert notices.send(only_the_hook) == (100, 100)
    assert (tried.count("hook"), tried.count("mail")) == (100, REFUSED_MOST)
    poisoned = "vm0: RPO"
    assert notices.send(lambda notice, _: poisoned not in notice.title) == (99, 1), "one that is refused stops no other"


def test_without_receivers_nothing_waits(tmp_path: Path) -> None:
    notices = Notices(tmp_path)
    notices.look([SICK], START, ())
    assert notices.send(lambda _notice, _receiver: True) == (0, 0)
    assert set(notices.holding()) == {SICK.key}


def test_what_ends_before_it_could_be_told_is_told_all_the_same(tmp_path: Path) -> None:
    notices = Notices(tmp_path)
    notices.look([SICK], START, OPS)
    notices.look([], START + HOUR, OPS)
    assert [line.split(": ")[1] for line in titles(notices)] == ["web", "all well again"]


@pytest.mark.parametrize("data", [b"", b"{", b'{"holds": 3}'])
def test_a_damaged_file_is_an_error_with_the_remedy(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(PermanentError, match="cannot be understood"):
        Notices(tmp_path).look([], START, OPS)


def test_conditions_of_a_fleet(tmp_path: Path) -> None:
    catalog = Catalog(SqliteFile(tmp_path / "c.sqlite"), REPOSITORY)
    catalog.add([run("a", "fine", 0, "done"), run("b", "never", 0, "failed"), point("fine", 0, verified=True)])
    jobs = [BackupJob.model_validate({"name": "nightly", "rpo": "24h"})]
    young = {each.key: each.severity for each in conditions(standing(catalog), jobs, START + HOUR)}
    assert young == {"never: no point": "critical", "never: backup failed": "warning"}
    old = [each.key for each in conditions(standing(catalog), jobs, START + 25 * HOUR)]
    assert "fine: RPO" in old
    tiers = tier_conditions({"hot": 10**9, "warm": 10**11, "cold": None}, {"copy": "No such file or directory"})
    assert [each.key for each in tiers] == ["tier hot full", "tier copy away"]


def _keys(catalog: Catalog, hours: float, *jobs: dict[str, Any]) -> list[str]:
    policy = [BackupJob.model_validate(job) for job in jobs]
    return [each.key for each in conditions(standing(catalog), policy, START + hours * HOUR)]


def test_a_broken_rpo_is_told_whatever_backed_the_vm_up_last(tmp_path: Path) -> None:
    catalog = Catalog(SqliteFile(tmp_path / "c.sqlite"), REPOSITORY)
    nightly, weekly = {"name": "nightly", "rpo": "24h"}, {"name": "weekly"}
    by_tag = {"name": "nightly", "rpo": "24h", "domains": ["tag:prod"]}
    catalog.add([run("a", "web", 0, "done"), point("web", 0, verified=True)])
    by_hand = run("b", "web", 30, "failed")
    by_hand.job = ""
    catalog.add([by_hand])
    assert _keys(catalog, 31, nightly) == ["web: RPO", "web: backup failed"], "a run by hand, which failed"
    assert "web: RPO" in _keys(catalog, 31, by_tag), "the newest job that backed it up"
    assert "web: RPO" in _keys(catalog, 31, {**nightly, "domains": ["db"]}), "forgotten, perhaps"
    assert _keys(catalog, 31, {**nightly, "domains": ["*", "!web"]}) == [], "left out on purpose"
    other = run("c", "web", 40, "done")
    other.job = "weekly"
    catalog.add([other, point("web", 40, verified=True)])
    assert _keys(catalog, 63, nightly, weekly) == []
    assert _keys(catalog, 65, nightly, weekly) == ["web: RPO"], "the other job promised nothing"


def test_evidence_against_a_point_is_told_until_that_point_is_proven_or_gone(tmp_path: Path) -> None:
    catalog = Catalog(SqliteFile(tmp_path / "c.sqlite"), REPOSITORY)
    bad, other = proof(1, "drill", ok=False), proof(2, "drill", ok=True)
    other.point_id = "db2"
    catalog.add([run("a", "db", 0, "done"), point("db", 1, verified=True), point("db", 2, verified=True), bad, other])
    assert _keys(catalog, 3) == ["db: drill failed"], "another point of the VM passed since"
    (told,) = conditions(standing(catalog), (), START + 3 * HOUR)
    assert "`vmcellar show db1`" in told.text
    catalog.add([proof(4, "drill", ok=True)])
    assert _keys(catalog, 5) == []
    catalog.add([proof(6, "drill", ok=False)])
    assert _keys(catalog, 7) == ["db: drill failed"]
    catalog.note_gone(["db1"], START + 8 * HOUR)
    assert _keys(catalog, 9) == []


def test_a_disk_that_is_in_no_point_is_told_until_one_holds_it(tmp_path: Path) -> None:
    catalog = Catalog(SqliteFile(tmp_path / "c.sqlite"), REPOSITORY)
    partly = run("a", "web", 0, "done")
    partly.uncovered = ["vdb: passed through"]
    catalog.add([partly, point("web", 0, verified=True)])
    (told,) = conditions(standing(catalog), (), START + HOUR)
    assert (told.key, told.severity) == ("web: not covered", "critical")
    assert "vdb: passed through" in told.text
    catalog.add([run("b", "web", 1, "failed")])
    assert "web: not covered" in _keys(catalog, 2), "a run that failed covers nothing"
    catalog.add([run("c", "web", 2, "done")])
    assert _keys(catalog, 3) == []


def _proof(vm: str, day: int, *, ok: bool) -> Evidence:
    made = proof(24 * day, "drill", ok=ok)
    made.id, made.vm = f"{vm}{day}", vm
    return made


def test_a_vm_that_nobody_has_proven_for_long_is_told_of_until_somebody_does(tmp_path: Path) -> None:
    catalog = Catalog(SqliteFile(tmp_path / "c.sqlite"), REPOSITORY)
    first = point("web", 0, verified=True)
    first.gone = START + HOUR
    catalog.add([first, point("web", 24 * 9, verified=True), point("db", 24 * 9, verified=True)])

    def unproven(days: float, within: float = 10.0) -> list[str]:
        found = conditions(standing(catalog), (), START + days * 86400, within * 86400)
        return [each.text for each in found if each.key.endswith(": unproven")]

    assert unproven(9.9) == []
    (told,) = unproven(10.1)
    assert told.startswith("web: none of its points was proven in 10 days, the policy asks 10"), "the first one went"
    assert conditions(standing(catalog), (), START + 86400 * 99) == [], "where nobody proves by schedule"
    catalog.add([_proof("web", 10, ok=False), _proof("db", 10, ok=True)])
    assert [text.split(":")[0] for text in unproven(19.9)] == ["web"], "a proof that failed is none"
    catalog.add([_proof("web", 11, ok=True)])
    assert unproven(19.9) == []
    assert {text.split(", ")[0] for text in unproven(31)} == {
        "db: its newest good proof is 21 days old",
        "web: its newest good proof is 20 days old",
    }
