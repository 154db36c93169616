"""prune: what it plans and what it drops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.repository.writing import point_of
from tests.tiers.faulty import DiedError, FaultyTier
from tests.upkeep.world import DAY, HOUR, START, World, renamed
from vmcellar.config.jobs import BackupJob, KeepByAge
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository.points import DiskRecord, RestorePoint
from vmcellar.upkeep import pins
from vmcellar.upkeep.prune import drop, plan, rules_for_all, rules_of_jobs

DISK = DiskRecord("vda", 512, "00" * 32, 0, "raw", "image-1")


def points(world: World, count: int) -> list[RestorePoint]:
    host = world.host()
    made: list[RestorePoint] = []
    for number in range(count):
        world.now += DAY
        made.append(world.back_up(host, {0: number + 1}, made[-1] if made else None))
    host.close()
    return made


def test_a_parent_can_go_and_its_children_stay_whole(world: World) -> None:
    made = points(world, 3)
    host = world.host()
    decisions = plan(host.points(), rules_for_all(KeepByAge(last=1)), pins=(), now=world.now)
    assert [point.id for point in drop(host, decisions)] == [made[0].id, made[1].id]
    assert [point.id for point in world.check()] == [made[2].id]
    assert world.keys("leases/") == set()


def test_a_death_at_any_step_drops_a_part_and_the_next_run_the_rest(world: World) -> None:
    made = points(world, 3)
    step = 0
    while True:
        step += 1
        faulty = world.faulty(step)
        host = world.host("dying", faulty)
        decisions = plan(host.points(), rules_for_all(KeepByAge(last=1)), pins=(), now=world.now)
        try:
            drop(host, decisions)
        except DiedError:
            assert made[2].id in {point.id for point in world.check()}
            host.close()
        else:
            break
    assert step > 3
    assert [point.id for point in world.check()] == [made[2].id]


def test_the_point_on_which_the_next_backup_builds_stays() -> None:
    base = point_of("web", DISK, START)
    old = renamed(base, id="20270115T080000Z-00000001")
    no_checkpoint = renamed(base, id="20270115T090000Z-00000002", time=START + HOUR, checkpoint="")
    unverified = renamed(base, id="20270115T100000Z-00000003", time=START + 2 * HOUR, verified=False)
    decisions = plan([unverified, no_checkpoint, old], rules_for_all(KeepByAge(last=1)), pins=(), now=START + 2 * HOUR)
    assert [decision.keep for decision in decisions] == [True, True, True]
    assert [decision.why for decision in decisions[:2]] == ["the next backup builds on it"] * 2


def test_a_point_made_by_hand_stays_where_a_tag_decides_whose_it_is() -> None:
    """Its VM may be gone: nobody can ask for its tags, and the policy of the other job may be the wrong one."""
    jobs = [BackupJob(name="web", domains=("web",), retention=KeepByAge(last=1)),
            BackupJob(name="prod", domains=("tag:prod",))]  # fmt: skip
    base = point_of("web", DISK, START)
    made = [renamed(base, id=f"20270115T080000Z-0000000{n}", time=START + n, job="") for n in range(3)]
    assert [d.keep for d in plan(made, rules_of_jobs(jobs[:1]), pins=(), now=START)] == [False, False, True]
    decisions = plan(made, rules_of_jobs(jobs), pins=(), now=START)
    assert [d.keep for d in decisions] == [True] * 3
    assert "a tag decides whether job prod" in decisions[0].why


def test_each_point_follows_the_job_that_made_it() -> None:
    jobs = [BackupJob(name="hourly", domains=("web",), retention=KeepByAge(last=1)),
            BackupJob(name="safe", domains=("web",))]  # fmt: skip
    base = point_of("web", DISK, START)
    made = [
        renamed(base, id=f"20270115T080000Z-0000000{number}", time=START + number, job=job)
        for number, job in enumerate(["hourly", "hourly", "safe", "gone", ""])
    ]
    decisions = plan(made, rules_of_jobs(jobs), pins=(), now=START)
    assert [decision.keep for decision in decisions] == [False, True, True, True, True]
    assert [decision.why for decision in decisions[2:]] == [
        "job safe has no retention", "its job gone is not in the configuration", "several jobs select its VM",
    ]  # fmt: skip
    alone = plan(made, rules_of_jobs(jobs[:1]), pins=(), now=START)
    assert alone[-1].why == "last 1"  # made by hand: judged by the only job that selects its VM


def test_a_pin_that_comes_between_plan_and_drop_holds(world: World) -> None:
    made = points(world, 2)
    host = world.host()
    decisions = plan(host.points(), rules_for_all(KeepByAge(last=1)), pins=(), now=world.now)
    pins.pin(host, made[0])
    assert drop(host, decisions) == []
    assert len(world.check()) == 2


def test_a_damaged_pin_still_pins(world: World) -> None:
    made = points(world, 2)
    host = world.host()
    pins.pin(host, made[0], "important")
    path = world.tier.path / "pins" / made[0].id
    path.chmod(0o600)
    path.write_bytes(b"")
    assert pins.pinned(host) == {made[0].id}
    assert pins.listed(host) == [pins.FoundPin(made[0].id, "", None)]


def test_two_prunes_never_empty_a_vm(world: World) -> None:
    made = points(world, 2)
    host = world.host()
    decisions = plan(host.points(), rules_for_all(KeepByAge(last=1)), pins=(), now=world.now)
    world.tier.delete(f"points/{made[1].id}")
    with pytest.raises(PermanentError, match="is not dropped"):
        drop(host, decisions)
    assert len(world.check()) == 1


def test_an_unreadable_point_stops_prune(world: World) -> None:
    made = points(world, 2)
    path = world.tier.path / "points" / made[1].id
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=made[1].id):
        world.host("fresh").points()


def test_a_failing_delete_is_an_error(world: World) -> None:
    points(world, 2)
    faulty = FaultyTier(world.tier, 1, operations=frozenset({"delete"}), error=PermanentError("read-only"))
    host = world.host("x", faulty)
    decisions = plan(host.points(), rules_for_all(KeepByAge(last=1)), pins=(), now=world.now)
    with pytest.raises(PermanentError, match="read-only"):
        drop(host, decisions)
    assert len(world.check()) == 2


HISTORY = st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.booleans(), st.sampled_from(["web", "db"])))


@given(HISTORY, st.builds(KeepByAge, last=st.integers(0, 3), daily=st.integers(0, 3), weekly=st.integers(0, 3)))
def test_what_holds_for_any_history(history: list[tuple[int, bool, bool, str]], rules: KeepByAge) -> None:
    base = point_of("web", DISK, START)
    made = [
        renamed(base, id=f"20270115T080000Z-{number:08x}", time=START + hours * HOUR, verified=verified, vm=vm,
                checkpoint="c" if tracked else "")
        for number, (hours, verified, tracked, vm) in enumerate(history)
    ]  # fmt: skip
    decisions = plan(made, rules_for_all(rules), pins={point.id for point in made[:1]}, now=START)
    assert sorted(decision.point.id for decision in decisions) == sorted(point.id for point in made)
    keep = {decision.point.id for decision in decisions if decision.keep}
    assert all(point.id in keep for point in made[:1])
    for vm in {point.vm for point in made}:
        own = sorted((point for point in made if point.vm == vm), key=lambda point: (point.time, point.id))
        assert own[-1].id in keep
        verified = [point.id for point in own if point.verified]
        assert not verified or verified[-1] in keep
