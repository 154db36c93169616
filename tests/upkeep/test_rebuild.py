"""rebuild-index that is stopped or dies goes on: packs whose tables it has written are not read again."""

from __future__ import annotations

import shutil

import pytest

from tests.tiers.faulty import DiedError
from tests.upkeep.world import DAY, World
from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken
from vmcellar.repository import layout
from vmcellar.repository.rebuild import RebuildReport, rebuild_index

OPENED = frozenset({"open"})


@pytest.fixture
def packs(world: World) -> int:
    """A repository without an index; how many packs it has."""
    host = world.host()
    for number in range(4):
        world.now += DAY
        world.back_up(host, {number: number + 1}, vm=f"vm-{number}")
    host.close()
    shutil.rmtree(world.tier.path / "index")
    return len(world.packs())


def rebuild(world: World, name: str = "b", stop_after: int | None = None) -> tuple[RebuildReport | None, int]:
    """The report, None when it was stopped after so many packs; and how many packs were opened."""
    tier, cancel, seen = world.faulty(operations=OPENED), CancelToken(), 0
    host = world.host(name, tier, refresh=False)

    def progress(_stage: str, amount: int) -> None:
        nonlocal seen
        seen += amount
        if seen == stop_after:
            cancel.cancel()

    try:
        return rebuild_index(host, progress, cancel), tier.count
    except CancelledError:
        return None, tier.count
    finally:
        host.close()


def test_stopped_it_goes_on_where_it_was(world: World, packs: int) -> None:
    assert rebuild(world, stop_after=3) == (None, 3)
    assert len(world.keys(layout.INDEX)) == 1
    done, opened = rebuild(world)
    assert done is not None
    assert (done.packs, done.damaged, opened) == (packs, (), packs - 3)
    assert len(world.check()) == 4
    again, opened = rebuild(world)
    assert (again, opened) == (done, packs), "one that has ended is not gone on with"
    assert len(world.keys(layout.INDEX)) == 1
    assert len(world.check()) == 4


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_durable_step_it_goes_on(
    world: World, packs: int, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(layout, "INDEX_ROWS_MAX", 4)
    spared = []
    for step in range(1, 100):
        tier = world.faulty(step, after=after)
        host = world.host("b", tier, refresh=False)
        try:
            rebuild_index(host)
        except DiedError:
            world.now += DAY
        finally:
            host.close()
        done, opened = rebuild(world)
        assert done is not None
        assert (done.packs, done.damaged) == (packs, ())
        spared.append(packs - opened)
        assert len(world.check()) == 4
        if not tier.fired:
            break
        for key in world.keys(layout.INDEX):
            world.tier.delete(key)
        shutil.rmtree(world.folder / "cache-b")
    assert not tier.fired
    assert max(spared) >= packs // 2, "what was written before it died was read again"
    assert spared[0] == spared[-1] == 0


def test_what_changed_since_is_read_again(world: World, packs: int) -> None:
    """A part that went, or names a pack that is not there as it was, counts for nothing; nor does another host's."""
    assert rebuild(world, stop_after=3)[0] is None
    _, opened = rebuild(world, "c", stop_after=1)
    assert opened == 1, "it knows nothing of what b has read"
    (part,) = sorted(world.keys(layout.INDEX))[:1]
    world.tier.delete(part)
    for key in world.keys(layout.INDEX):
        world.tier.delete(key)
    note = next((world.folder / "cache-b").glob("rebuild-*"))
    note.write_text(f"{note.read_text()}index/zz\nnonsense\n")
    done, opened = rebuild(world)
    assert done is not None
    assert (done.packs, opened) == (packs, packs)
    assert len(world.check()) == 4


def test_a_pack_that_was_cut_since_is_named(world: World, packs: int) -> None:
    assert rebuild(world, stop_after=packs - 1)[0] is None
    key = sorted(world.keys(layout.META))[0]
    path = world.tier.path / key
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-1])
    done, _ = rebuild(world)
    assert done is not None
    (said,) = done.damaged
    assert key in said
    assert done.packs == packs - 1
