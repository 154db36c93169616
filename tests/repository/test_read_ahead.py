"""What waits for a server is asked for at once: each test fails after a minute when it is asked one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.repository.fakes import FixedKeyring
from tests.repository.writing import back_up
from vmcellar.crypto.keyring import RepositoryKeyring
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import PermanentError
from vmcellar.repository.read_ahead import at_once, contents
from vmcellar.repository.repository import Repository
from vmcellar.restore.plan import WINDOW, make_plan
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.tiers.base import TierReader
from vmcellar.tiers.local import LocalTier

SIZE = 3 * WINDOW
PIECE = 64 << 10


class Far(LocalTier):
    """A directory that counts as a server. Those who ask for what shall `meet` wait until all have asked."""

    kind = "far"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.awaited: list[str] = []
        self._all_here = threading.Barrier(1)
        self._lock = threading.Lock()

    def meet(self, keys: Iterable[str]) -> None:
        self.awaited = list(keys)
        self._all_here = threading.Barrier(len(self.awaited))

    def _arrive(self, key: str) -> None:
        with self._lock:
            here = key in self.awaited
            if here:
                self.awaited.remove(key)
        if here:
            self._all_here.wait(60)

    def open(self, key: str) -> TierReader:
        self._arrive(key)
        return super().open(key)

    def get(self, key: str) -> bytes:
        self._arrive(key)
        return super().get(key)


def opened(tier: LocalTier, cache: Path) -> Repository:
    """As a new process opens it."""
    found = Repository(tier, FixedKeyring(), b"r" * 16, cache)
    found.index.refresh()
    return found


@pytest.fixture
def far(tmp_path: Path) -> Far:
    (tmp_path / "far").mkdir()
    return Far(tmp_path / "far")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def test_maps_of_several_windows_are_read_at_once(far: Far, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Of three windows; a second and a third point change the first and the second one."""
    host = opened(far, tmp_path / "writer")
    pieces = [(window * WINDOW, bytes([window + 1]) * PIECE) for window in range(3)]
    points = [back_up(host, pool, pieces, SIZE)]
    written = [metas(far)]
    for window in range(2):
        points.append(back_up(host, pool, [(window * WINDOW, bytes([window + 9]) * PIECE)], SIZE, points[-1]))
        written.append(metas(far) - set().union(*written))
    host.close()
    host = opened(far, tmp_path / "reader")
    far.meet([*written[0], *written[1]])  # of the last and of the first window; the root is in the third point's own
    plan = make_plan(host, points[2])
    assert far.awaited == []
    assert plan.data == 3 * PIECE
    host.close()


def metas(tier: LocalTier) -> set[str]:
    return {key for key, _ in tier.list("meta/")}


def test_what_lies_beside_the_disks_is_read_at_once(far: Far, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    host = opened(far, tmp_path / "cache")
    point = back_up(host, pool, [(0, b"a" * PIECE)], PIECE)
    chunks = [bytes.fromhex(artifact.chunks[0]) for artifact in point.artifacts]
    assert len(chunks) == 2
    make_plan(host, point)  # so that the map is known: its nodes lie in the same pack
    far.meet([found.pack.key for found in host.locate(chunks).values()])
    report = restore_point(host, point, RestoreTarget(tmp_path / "out", "raw"))
    assert far.awaited == []
    assert set(report.artifacts) == {"domain.xml", "kernel"}
    host.close()


def test_index_parts_are_read_at_once_by_a_new_host(far: Far, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    host = opened(far, tmp_path / "writer")
    for number in range(3):
        back_up(host, pool, [(0, bytes([number + 1]) * PIECE)], PIECE)
    host.close()
    parts = [key for key, _ in far.list("index/")]
    assert len(parts) >= 3
    far.meet(parts)
    host = opened(far, tmp_path / "reader")
    assert far.awaited == []
    assert len(host.points()) == 3
    host.close()


def test_keys_of_several_backups_are_read_at_once(far: Far) -> None:
    secrets = Secrets.random(data=True)
    writers = [RepositoryKeyring(far, secrets) for _ in range(3)]
    epochs = [writer.epoch_id for writer in writers]
    reader = RepositoryKeyring(far, secrets)
    names = [key for key, _ in far.list("epochs/")]
    far.meet(names)
    found = at_once(reader.epochs.key, [*epochs, *epochs])
    assert far.awaited == []
    assert found == [writer.epochs.key(epoch) for writer, epoch in zip(writers, epochs, strict=True)] * 2


def test_large_objects_are_read_ahead_by_their_sizes(far: Far) -> None:
    for name in "abcd":
        far.put(f"index/{name}", name.encode())
    keys = [f"index/{name}" for name in "abcd"]
    sizes = dict(zip(keys, (20 << 20, 12 << 20, 1, 40 << 20), strict=True))
    far.meet(keys[:2])
    asked: list[str] = []
    get = far.get

    def noted(key: str) -> bytes:
        asked.append(key)
        return get(key)

    far.get = noted  # type: ignore[method-assign]
    for key, content in contents(far, keys, sizes):
        assert content().decode() == key.removeprefix("index/")
        assert set(asked) <= set(keys[: {"a": 2, "b": 2, "c": 3, "d": 4}[key[-1]]]), "no more than 32 MiB at a time"
    assert sorted(asked) == keys


def test_the_first_error_is_raised_when_none_runs_any_more() -> None:
    failed = threading.Event()
    begun: list[int] = []
    ended: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            failed.set()
            raise PermanentError("one")
        assert failed.wait(60)
        ended.append(number)

    with pytest.raises(PermanentError):
        at_once(work, range(3))
    assert sorted([*ended, 1]) == sorted(begun)
