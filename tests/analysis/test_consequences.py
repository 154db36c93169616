"""What follows from ransomware in a VM: pins of points from before it, a forced full, once; how a person ends it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.analysis.attacked import DAY, Attacked, attack, attacked_history, found_at
from tests.backup.world import EmptySource, make_engine
from vmcellar.analysis import consequences
from vmcellar.analysis.anomalies import Anomaly as AnomalySeen
from vmcellar.analysis.anomalies import find
from vmcellar.backup import snapshot, wanted_full
from vmcellar.backup.model import BackupRequest
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.conditions import conditions
from vmcellar.catalog.metrics import standing
from vmcellar.catalog.models import Anomaly
from vmcellar.config.jobs import BackupJob
from vmcellar.config.onanomaly import OnAnomaly
from vmcellar.errors import UsageError
from vmcellar.progress import CancelToken
from vmcellar.repository import evidence
from vmcellar.upkeep import pins


@pytest.fixture
def attacked(tmp_path: Path) -> Iterator[Attacked]:
    engine = make_engine(tmp_path)
    engine.config = engine.config.model_copy(update={"backups": (BackupJob(name="all"),)})
    yield attack(engine)
    engine.repository.close()


def look(world: Attacked, now: float | None = None, shared: Catalog | None = None) -> list[Anomaly]:
    """What the flow does: write down, then do; the new rows."""
    engine, at = world.engine, now or world.now
    catalog = shared or engine.catalog
    new = consequences.note(catalog, engine.repository, engine.config, found_at(at), at)
    consequences.act(catalog, engine.repository, engine.config, at)
    return new


def wanted(world: Attacked) -> str:
    return wanted_full.asked(world.engine.state, world.vm, world.engine.repository.points_of(world.vm))


def policy(world: Attacked, rules: OnAnomaly) -> None:
    job = BackupJob(name="all", on_anomaly=rules)
    world.engine.config = world.engine.config.model_copy(update={"backups": (job,)})


def test_good_points_are_pinned_and_the_next_backup_reads_everything(attacked: Attacked) -> None:
    (row,) = look(attacked)
    assert (row.kind, row.vm) == ("ransomware", attacked.vm)
    held = pins.listed(attacked.engine.repository)
    before = {attacked.before(0.2), attacked.before(2), attacked.before(8)}
    assert {each.point for each in held} == before, "now, a day and a week older"
    assert all(each.pin is not None and each.pin.note.startswith("ransomware was seen after it") for each in held)
    handle = snapshot.snapshot(attacked.engine, BackupRequest(attacked.vm), CancelToken())
    assert attacked.engine.run(handle.run_id).record.kind == "full"
    assert cast("EmptySource", attacked.engine.source).begun[-1].force_full == "its backups looked strange: ransomware"


def test_people_are_told_for_as_long_as_nobody_has_judged_it(attacked: Attacked) -> None:
    def critical() -> list[str]:
        found = conditions(standing(attacked.engine.catalog), attacked.engine.config.backups, attacked.now)
        return [one.key for one in found if one.key.endswith("ransomware")]

    assert critical() == []
    look(attacked)
    assert critical() == [f"{attacked.vm}: ransomware"]
    judge(attacked)
    assert critical() == []


def judge(world: Attacked, *, unpin: bool = True) -> list[Anomaly]:
    engine = world.engine
    return consequences.judge(
        engine.catalog, engine.repository, engine.config, world.vm, "import of videos", unpin=unpin
    )


def test_it_happens_once_however_often_one_looks(attacked: Attacked) -> None:
    look(attacked)
    pins.unpin(attacked.engine.repository, attacked.before(8))
    for hours in (1, 5, 24, 30):
        assert look(attacked, attacked.now + hours * 3600) == []
    assert attacked.before(8) not in pins.pinned(attacked.engine.repository), "a person removed it"
    assert len(attacked.engine.catalog.anomalies()) == 1


def test_what_is_judged_is_over_and_stays_judged(attacked: Attacked) -> None:
    own = attacked.before(2)
    pins.pin(attacked.engine.repository, attacked.engine.repository.point(own), "mine")
    look(attacked)
    (row,) = judge(attacked)
    assert row.verdict == "import of videos"
    assert pins.pinned(attacked.engine.repository) == {own}, "what a person pinned is theirs"
    assert wanted(attacked) == ""
    assert look(attacked, attacked.now + DAY) == [], "it goes on, and is the same"
    with pytest.raises(UsageError, match="no anomaly that waits"):
        judge(attacked)


def test_work_that_holds_a_point_is_no_pin_for_good(attacked: Attacked) -> None:
    """It may end before anybody has judged."""
    repository, newest = attacked.engine.repository, attacked.before(0.2)
    pins.hold(repository, repository.point(newest), "a boot", "a VM runs from it")
    look(attacked)
    pins.let_go(repository, newest, "a boot")
    assert newest in pins.pinned(repository)
    pins.hold(repository, repository.point(newest), "a boot", "a VM runs from it")
    judge(attacked)
    assert pins.pinned(repository) == {newest}, "what holds it goes on"


def test_a_call_that_died_is_finished_by_the_next(attacked: Attacked) -> None:
    engine = attacked.engine
    consequences.note(engine.catalog, engine.repository, engine.config, found_at(attacked.now), attacked.now)
    assert pins.pinned(engine.repository) == set()
    pins.pin(engine.repository, engine.repository.point(attacked.before(8)), "as far as it came")
    look(attacked)
    assert len(pins.pinned(engine.repository)) == 3
    assert wanted(attacked)


def test_a_point_that_another_host_pins_at_the_same_time_keeps_nothing_from_its_consequences(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, make = attacked.engine.repository, pins.pin

    def both(*args: Any) -> Any:
        monkeypatch.setattr(pins, "pin", make)
        make(*args)
        return make(*args)

    monkeypatch.setattr(pins, "pin", both)
    look(attacked)
    assert len(pins.pinned(repository)) == 3
    assert wanted(attacked)


def test_policy_decides_what_follows(attacked: Attacked) -> None:
    policy(attacked, OnAnomaly(kinds=("stuck",)))
    assert look(attacked) == []
    policy(attacked, OnAnomaly(pin=1, full=False, drill=True))
    (row,) = look(attacked)
    assert pins.pinned(attacked.engine.repository) == {attacked.before(0.2)}
    assert (row.full, row.drill, wanted(attacked)) == (False, "wanted", "")


def test_without_a_job_it_is_only_told(attacked: Attacked) -> None:
    attacked.engine.config = attacked.engine.config.model_copy(update={"backups": ()})
    assert len(look(attacked)) == 1
    assert pins.pinned(attacked.engine.repository) == set()
    assert wanted(attacked) == ""


def elsewhere(world: Attacked, tmp_path: Path) -> Attacked:
    """Another host with the same repository, and a state of its own."""
    engine = copy(world.engine)
    engine.config = engine.config.model_copy(update={"state": tmp_path / "other-host"})
    return replace(world, engine=engine)


def asked_on(world: Attacked) -> str:
    points = world.engine.repository.points_of(world.vm)
    return wanted_full.asked(world.engine.config.state, world.vm, points)


def test_each_host_that_shares_the_catalog_reads_the_vm_in_full(attacked: Attacked, tmp_path: Path) -> None:
    other = elsewhere(attacked, tmp_path)
    assert len(look(attacked)) == 1
    assert look(other, attacked.now + 60, attacked.engine.catalog) == []
    assert asked_on(other) == asked_on(attacked) == "its backups looked strange: ransomware"
    judge(attacked)
    assert asked_on(attacked) == ""
    look(other, attacked.now + 120, attacked.engine.catalog)
    assert asked_on(other) == "", "what was judged on one host is over on all"


def test_hosts_that_look_at_the_same_minute_write_an_anomaly_down_once(
    attacked: Attacked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at a VM's points takes time, in which the other one does its work."""
    other, sound = elsewhere(attacked, tmp_path), evidence.sound

    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(evidence, "sound", sound)
        assert len(look(other, shared=attacked.engine.catalog)) == 1
        return sound(*args)

    monkeypatch.setattr(evidence, "sound", meanwhile)
    assert look(attacked, attacked.now + 1) == []
    assert len(attacked.engine.catalog.anomalies()) == 1


def test_a_host_without_a_job_for_the_vm_takes_nothing_from_the_one_that_has_it(
    attacked: Attacked, tmp_path: Path
) -> None:
    other = elsewhere(attacked, tmp_path)
    other.engine.config = other.engine.config.model_copy(update={"backups": ()})
    assert len(look(other, shared=attacked.engine.catalog)) == 1
    assert pins.pinned(attacked.engine.repository) == set()
    assert look(attacked, attacked.now + 60) == []
    assert len(pins.pinned(attacked.engine.repository)) == 3
    assert asked_on(attacked)
    assert len(attacked.engine.catalog.anomalies()) == 1


def test_a_full_that_came_ends_the_wish_and_an_unreadable_note_does_not(attacked: Attacked) -> None:
    look(attacked)
    (newest,) = attacked.points[-1:]
    later = replace(newest, kind="full", time=attacked.now + 60)
    state = attacked.engine.state
    assert wanted_full.asked(state, attacked.vm, [newest, replace(later, verified=False)])
    assert wanted_full.asked(state, attacked.vm, [newest, replace(later, kind="incremental")])
    assert wanted_full.asked(state, attacked.vm, [newest, later]) == ""
    (note,) = (state / wanted_full.FOLDER).iterdir()
    note.write_text("{")
    assert "cannot be read" in wanted_full.asked(state, attacked.vm, [newest])


def test_points_that_cannot_be_trusted_are_not_pinned(attacked: Attacked) -> None:
    bad = [replace(point, verified=False) for point in attacked.points]
    assert consequences.trusted(bad, attacked.at, 4, ()) == []
    assert consequences.trusted(attacked.points, attacked.points[0].time, 4, ()) == [], "none is older"


def seen_at(world: Attacked, days: float, disk: str = "vda") -> AnomalySeen:
    """Ransomware on a disk, some days after the attack."""
    (one,) = (one for one in found_at(world.now) if one.kind == "ransomware")
    at = one.at + days * DAY
    return replace(one, disk=disk, at=at, last=at + 3600, began=at - 2 * 3600)


def look_at(world: Attacked, found: list[AnomalySeen], now: float) -> list[Anomaly]:
    engine = world.engine
    new = consequences.note(engine.catalog, engine.repository, engine.config, found, now)
    consequences.act(engine.catalog, engine.repository, engine.config, now)
    return new


def test_an_attack_days_after_a_false_alarm_that_was_judged_is_another_one(attacked: Attacked) -> None:
    """Both lie in the week that is looked at."""
    false_alarm, attack = seen_at(attacked, 0), seen_at(attacked, 5)
    look_at(attacked, [false_alarm], attacked.now)
    judge(attacked)
    (row,) = look_at(attacked, [false_alarm, attack], attacked.now + 5 * DAY)
    assert (row.began, row.judged) == (attack.began, None)
    assert wanted(attacked)
    assert look_at(attacked, [false_alarm, attack], attacked.now + 5 * DAY) == [], "once"


def test_what_is_judged_of_one_disk_says_nothing_of_another(attacked: Attacked) -> None:
    look_at(attacked, [seen_at(attacked, 0)], attacked.now)
    judge(attacked)
    (row,) = look_at(attacked, [seen_at(attacked, 0), seen_at(attacked, 0.5, "vdb")], attacked.now + DAY)
    assert row.disks == "vdb"
    assert len(pins.pinned(attacked.engine.repository)) == 3


def test_a_verdict_that_comes_during_the_drill_stands(attacked: Attacked) -> None:
    """The flow holds the row for as long as the drill takes."""
    policy(attacked, OnAnomaly(drill=True))
    look(attacked)
    (held,) = attacked.engine.catalog.anomalies()
    judge(attacked)
    held.told, held.drill = attacked.now, "p1: passed"
    attacked.engine.catalog.change([held], ("told", "drill"))
    (row,) = attacked.engine.catalog.anomalies()
    assert (row.told, row.drill, row.verdict) == (attacked.now, "p1: passed", "import of videos")
    assert row.judged is not None


def test_what_happened_while_nobody_looked_is_found_by_the_next_look(tmp_path: Path) -> None:
    """Backups go on without a Prefect server."""
    _, at, frame = attacked_history()
    assert consequences.days_to_look(tmp_path, at) == consequences.LOOK_DAYS
    consequences.note_looked(tmp_path, at - DAY)
    assert consequences.days_to_look(tmp_path, at) == consequences.LOOK_DAYS
    now = at + 12 * DAY
    days = consequences.days_to_look(tmp_path, now)
    assert days == pytest.approx(14)
    assert "ransomware" in {one.kind for one in find(frame, now, days)}
    assert "ransomware" not in {one.kind for one in find(frame, now, consequences.LOOK_DAYS)}
    assert consequences.days_to_look(tmp_path, at + 400 * DAY) == consequences.MOST_LOOK_DAYS
    assert consequences.days_to_look(tmp_path, at - 400 * DAY) == consequences.LOOK_DAYS, "a clock that went back"


def test_one_host_drills_for_an_anomaly_and_goes_on_after_its_flow_died(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy(attacked, OnAnomaly(drill=True))
    look(attacked)
    catalog = attacked.engine.catalog
    (first,), (second,), (again,) = (catalog.anomalies() for _ in range(3))
    monkeypatch.setattr("socket.gethostname", lambda: "kvm1")
    assert consequences.claim_drill(catalog, first)
    assert consequences.claim_drill(catalog, again), "its flow died meanwhile"
    monkeypatch.setattr("socket.gethostname", lambda: "kvm2")
    assert not consequences.claim_drill(catalog, second), "it saw the row before kvm1 began"
    (row,) = catalog.anomalies()
    assert (row.drill, consequences.waits_for_drill(row)) == ("begun on kvm1", False)
