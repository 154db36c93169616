"""Packs that stay open between reads: opened once, closed in the end, and anew after an error."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.repository.fakes import FixedKeyring
from tests.repository.test_packs import adopt, chunks, write
from vmcellar.errors import TransientError
from vmcellar.repository.open_packs import IDLE_MOST, OpenPacks
from vmcellar.repository.pack_format import PackRef
from vmcellar.repository.packs import PackReader
from vmcellar.tiers.base import TierReader
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.local_reader import LocalReader


class Counting(LocalTier):
    """Counts what is opened and closed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()

    def open(self, key: str) -> LocalReader:
        self.opened[key] += 1
        return _Closing(self, key, super().open(key))  # type: ignore[return-value]  # stands in for it


class _Closing:
    def __init__(self, tier: Counting, key: str, reader: TierReader) -> None:
        self._tier, self._key, self._reader = tier, key, reader
        self.size = reader.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._reader.read_into(offset, buffer)

    def close(self) -> None:
        self._tier.closed[self._key] += 1
        self._reader.close()


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    (tmp_path / "counted").mkdir()
    return Counting(tmp_path / "counted")


def packs_of(tier: LocalTier, keyring: FixedKeyring, count: int) -> list[PackRef]:
    """Several packs, with what a location would say of each."""
    packs = write(keyring, tier.staging_dir(), chunks(count, 200_000), pack_bytes=150_000)
    adopt(tier, packs)
    refs = []
    for pack in packs:
        with PackReader(tier, pack.key, keyring) as reader:
            refs.append(reader.pack)
    return refs


def test_one_open_serves_all_threads(counting: Counting, keyring: FixedKeyring) -> None:
    (ref, *_) = packs_of(counting, keyring, 1)
    counting.opened.clear()
    counting.closed.clear()

    def rows(_: int) -> int:
        with packs.reader(ref) as reader:
            return len(reader.toc())

    with OpenPacks(counting, keyring) as packs, ThreadPoolExecutor(8) as threads:
        assert set(threads.map(rows, range(40))) == {1}
    assert counting.opened == counting.closed == {ref.key: 1}


def test_an_error_has_it_opened_anew_and_few_stay_open(counting: Counting, keyring: FixedKeyring) -> None:
    refs = packs_of(counting, keyring, IDLE_MOST + 4)
    assert len(refs) > IDLE_MOST
    counting.opened.clear()
    counting.closed.clear()
    with OpenPacks(counting, keyring) as packs:
        with pytest.raises(TransientError), packs.reader(refs[0]):
            raise TransientError("planned")
        for ref in refs:
            with packs.reader(ref):
                pass
        assert sum(counting.opened.values()) - sum(counting.closed.values()) == IDLE_MOST
    assert counting.opened[refs[0].key] == 2
    assert counting.opened == counting.closed
