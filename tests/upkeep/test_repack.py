"""gc repacks mostly dead packs: what is needed of them moves, the rest goes, and no point notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiers.faulty import DiedError
from tests.upkeep.world import DAY, World
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken
from vmcellar.repository.repository import Repository, make, unlock
from vmcellar.upkeep import gc


def mostly_dead(world: World, host: Repository) -> str:
    """A pack of four chunks of which a point needs one; its key."""
    gone = world.back_up(host, {0: 1, 1: 2, 2: 3, 3: 4}, vm="old")
    (key,) = world.keys("data/")
    world.back_up(host, {0: 1})
    world.tier.delete(f"points/{gone.id}")
    del world.model[gone.id]
    return key


def damage(world: World, key: str) -> None:
    path = world.tier.path / key
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def test_a_mostly_dead_pack_goes_in_two_phases(world: World) -> None:
    host = world.host()
    old = mostly_dead(world, host)
    size = world.tier.size(old)
    told = gc.collect(host, dry_run=True)
    assert (told.repacked, world.packs() & {old}) == ((old,), {old})
    report = gc.collect(host)
    assert (report.repacked, report.repacked_bytes) == ((old,), size)
    assert 65536 <= report.repacked_live < size / 2
    assert old in world.packs()
    assert len(world.check()) == 1
    (new,) = world.keys("data/") - {old}
    wanted = host.keyring.chunk_id(world.model[host.points()[0].id][: 64 << 10])
    assert host.locate([wanted])[wanted].pack.key == new  # from now on restores read the copy
    world.now += 2 * DAY
    done = gc.collect(host)
    assert old in done.deleted
    assert world.keys("data/") == {new}
    assert world.keys("gc/") == set()
    assert len(world.check()) == 1
    again = gc.collect(host)
    assert (again.repacked, again.marked, again.packs) == ((), (), again.needed)


def test_the_old_pack_stays_when_the_copy_has_gone_bad_meanwhile(world: World) -> None:
    host = world.host()
    old = mostly_dead(world, host)
    gc.collect(host)
    (new,) = world.keys("data/") - {old}
    damage(world, new)
    world.now += 2 * DAY
    report = gc.collect(host)
    assert report.deleted == ()
    assert "cannot be read" in report.waiting[0]
    assert len(world.check()) == 1
    assert old in world.packs()
    for _ in range(3):  # the damage is noted: the old one counts again, and is repacked into another
        gc.collect(host)
        world.now += 2 * DAY
    assert old not in world.packs()
    assert len(world.check()) == 1


def test_a_pack_whose_needed_part_is_damaged_is_left_alone(world: World) -> None:
    host = world.host()
    old = mostly_dead(world, host)
    damage(world, old)
    before = world.packs()
    report = gc.collect(host)
    assert report.repacked == ()
    assert old in report.notes[0]
    assert world.keys("data/") == {old}
    assert world.packs() == before


def test_a_backup_that_began_before_relies_on_the_old_pack(world: World) -> None:
    host, collector = world.host(), world.host("collector")
    old = mostly_dead(world, host)

    def beside() -> None:
        assert gc.collect(collector).repacked == (old,)
        world.now += 2 * DAY
        host._held["late"].renew()
        assert gc.collect(collector).deleted == ()

    world.back_up(host, {4: 2, 5: 3}, vm="late", before_commit=beside)  # of what was dead when gc looked
    world.now += 2 * DAY
    gc.collect(collector)
    assert old in world.packs()
    assert len(world.check()) == 2


@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_durable_step_harms_nothing(world: World, tmp_path: Path, after: bool) -> None:
    steps, step = 1, 0
    while step < steps:
        step += 1
        folder = tmp_path / f"{step}"
        folder.mkdir()
        own = World.make(folder, world.pool)
        old = mostly_dead(own, own.host())
        faulty = own.faulty(step, after=after)
        try:
            gc.collect(own.host("dying", faulty))
        except DiedError:
            steps = step + 1
        own.check()
        last = own.host("next")
        for _ in range(4):
            own.now += 2 * DAY
            gc.collect(last)
        own.check()
        assert old not in own.packs()
        report = gc.collect(last, dry_run=True)
        assert (report.packs, report.marked, report.repacked) == (report.needed, (), ())
    assert steps > 7


def test_it_can_be_stopped_and_leaves_no_staging(world: World) -> None:
    host = world.host()
    mostly_dead(world, host)
    before = world.packs()
    cancel = CancelToken()

    def stop(stage: str, _: int) -> None:
        if stage == "gc":
            cancel.cancel()

    with pytest.raises(CancelledError):
        gc.collect(host, progress=stop, cancel=cancel)
    assert world.packs() == before
    assert list(world.tier.staging_dir().iterdir()) == []
    assert len(world.check()) == 1


def test_in_recipient_mode_only_who_has_the_private_key_repacks(world: World) -> None:
    """The backup host cannot open what earlier processes stored: such packs stay, and the run says so."""
    private = PrivateKey.generate()
    make(world.tier, b"a passphrase", [private.public])

    def opened(key: bytes | PrivateKey, name: str) -> Repository:
        keyring, number = unlock(world.tier, key)
        found = Repository(world.tier, keyring, number, world.folder / f"cache-{name}", lambda: world.now)
        found.index.refresh()
        return found

    writer = opened(b"a passphrase", "writer")
    old = mostly_dead(world, writer)
    later = opened(b"a passphrase", "later")
    report = gc.collect(later)
    assert [key for key in report.repacked if key.startswith("data/")] == []
    assert "1 packs stay as they are" in report.notes[0]
    owner = opened(private, "owner")
    assert old in gc.collect(owner).repacked
    world.now += 2 * DAY
    waiting = gc.collect(later)  # it cannot look at the copies
    assert old in world.packs()
    assert any("cannot be read" in reason for reason in waiting.waiting)
    assert old in gc.collect(owner).deleted
    for each in (writer, later, owner):
        each.close()
