"""A check while a tier does not answer: it is not ok, and calls nothing damaged for good; a device that fails does."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.restore.test_restore import damage, flip_one
from tests.upkeep.tiered import TieredWorld
from tests.upkeep.world import DAY
from vmcellar.backup import heal
from vmcellar.errors import TransientError, VmcellarError
from vmcellar.repository.layout import DATA
from vmcellar.repository.packs import Location, PackReader, PackRef
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.tiers.base import NotFoundError
from vmcellar.tiers.local_errors import translate


class Away:
    """A tier of which each call fails, as long as there is an `error`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.error: VmcellarError | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return (lambda *args, **options: self._call(found, *args, **options)) if callable(found) else found

    def _call(self, found: Any, *args: Any, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        return found(*args, **options)


def device_error() -> VmcellarError:
    error = translate(OSError(errno.EIO, "Input/output error"), "data/pack")
    error.__cause__ = OSError(errno.EIO, "Input/output error")
    return error


@pytest.mark.parametrize(("error", "noted"), [(TransientError("the server does not answer"), 0), (device_error(), 6)])
def test_what_could_not_be_asked_for_is_not_called_damaged(
    tmp_path: Path, pool: ThreadPoolExecutor, error: VmcellarError, noted: int
) -> None:
    world = TieredWorld.make(tmp_path, pool)
    point = world.back_up(world.host(), {place: 100 + place for place in range(6)})
    world.now += 10 * DAY
    away: Any = Away(world.others["warm"])
    world.others["warm"] = away
    assert world.rebalance().ok
    away.error = error
    report = verify_all(world.host("checker"), deep=True)
    assert not report.ok
    assert {touched.point for found in report.findings for touched in found.ranges} == {point.id}
    away.error = None
    later = world.host("later")
    assert len(later.index.lost()) == noted
    assert len(heal.lost_extents(later, point.disks[0]) or ()) == noted


def test_map_nodes_of_a_hot_tier_that_does_not_answer_are_not_called_damaged(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = TieredWorld.make(tmp_path, pool)
    world.back_up(world.host(), {place: 100 + place for place in range(6)})
    host = world.host("checker")

    def fails(*_: object) -> dict[bytes, bytes]:
        raise TransientError("the connection broke off")

    with monkeypatch.context() as patch:
        patch.setattr(host, "read_objects", fails)
        assert not verify_all(host).ok
    assert world.host("later").index.lost() == set()


def test_what_only_an_unreadable_map_reaches_is_read_as_well(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """Else the backup that heals the map would rest on chunks that nobody has read."""
    world = TieredWorld.make(tmp_path, pool)
    host = world.host()
    point = world.back_up(host, {place: 100 + place for place in range(6)})
    root = bytes.fromhex(point.disks[0].root)
    world.tier.delete(host.index.locate([root])[root].pack.key)
    (data,) = (path for path in (tmp_path / "hot" / "data").rglob("*") if path.is_file())
    damage(data, flip_one)
    assert not verify_all(world.host("checker"), deep=True).ok
    chunks = {found.chunk for pack in host.index.packs() for found in _objects(host, pack) if pack.key.startswith(DATA)}
    assert len(chunks & world.host("later").index.lost()) == 1


def _objects(host: Repository, pack: PackRef) -> list[Location]:
    with suppress(NotFoundError), PackReader(host.tier, pack.key, host.keyring) as reader:
        return reader.locations()
    return []
