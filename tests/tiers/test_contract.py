"""The contract of `vmcellar.tiers.base.Tier`, held against every kind of tier."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmcellar.config.tiers import TierSettings
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.memory import BufferPool
from vmcellar.tiers.base import NotFoundError, Tier


def staged(tier: Tier, data: bytes, name: str = "file") -> Path:
    path = tier.staging_dir() / name
    path.write_bytes(data)
    return path


def test_put_and_adopt_come_back(tier: Tier) -> None:
    tier.put("points/one", b"one")
    path = staged(tier, b"two" * 5000)
    tier.adopt(path, "data/ab/abcd")
    assert tier.get("points/one") == b"one"
    assert tier.get("data/ab/abcd") == b"two" * 5000
    assert tier.read("data/ab/abcd", 3, 6) == b"twotwo"
    assert (tier.size("points/one"), tier.size("data/ab/abcd")) == (3, 15000)
    assert not path.exists()
    assert list(tier.staging_dir().iterdir()) == []


def test_an_empty_object(tier: Tier) -> None:
    tier.put("points/empty", b"")
    assert tier.get("points/empty") == b""
    assert list(tier.list("points/")) == [("points/empty", 0)]


def test_adopt_from_another_folder(tier: Tier, tmp_path: Path) -> None:
    source = tmp_path / "elsewhere"
    source.write_bytes(b"content")
    tier.adopt(source, "data/cd/cdef")
    assert tier.get("data/cd/cdef") == b"content"
    assert not source.exists()


def test_nothing_is_ever_overwritten(tier: Tier) -> None:
    tier.put("points/one", b"first")
    with pytest.raises(PermanentError, match="points/one exists"):
        tier.put("points/one", b"second")
    path = staged(tier, b"third")
    with pytest.raises(PermanentError, match="points/one exists"):
        tier.adopt(path, "points/one")
    assert path.read_bytes() == b"third"
    assert tier.get("points/one") == b"first"


def test_of_many_writers_of_one_key_one_wins(tier: Tier) -> None:
    def attempt(number: int) -> int | None:
        try:
            tier.put("points/one", bytes([number]) * 1000)
        except PermanentError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(attempt, range(16)) if number is not None]
    assert len(winners) == 1
    assert tier.get("points/one") == bytes(winners) * 1000


def test_what_is_missing_is_not_found(tier: Tier, tmp_path: Path) -> None:
    for call in (
        lambda: tier.get("points/no"),
        lambda: tier.read("data/aa/no", 0, 1),
        lambda: tier.open("data/aa/no"),
        lambda: tier.size("points/no"),
        lambda: tier.delete("points/no"),
    ):
        with pytest.raises(NotFoundError, match="no"):
            call()
    assert not tier.exists("points/no")
    with pytest.raises(PermanentError):
        tier.adopt(tmp_path / "no such file", "points/new")
    assert not tier.exists("points/new")


def test_list_is_sorted_complete_and_by_prefix(tier: Tier) -> None:
    keys = [f"data/{i:02x}/{i:02x}{j}" for i in (0, 7, 16, 255) for j in range(3)]
    for key in reversed(keys):
        tier.put(key, key.encode())
    tier.put("points/one", b"1")
    staged(tier, b"half a pack")
    assert list(tier.list("data/")) == [(key, len(key)) for key in keys]
    assert [key for key, _ in tier.list("data/10/")] == keys[6:9]
    assert [key for key, _ in tier.list("data/0")] == keys[:6]
    assert list(tier.list("index/")) == []


def test_delete(tier: Tier) -> None:
    tier.put("points/one", b"1")
    tier.delete("points/one")
    assert not tier.exists("points/one")
    tier.put("points/one", b"2")
    assert tier.get("points/one") == b"2"


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../up", "data/../../up", ".hidden", "a//b", "a/", "a\n", "x" * 300]
)
def test_keys_that_could_leave_the_tier_are_refused(tier: Tier, key: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for call in (lambda: tier.put(key, b"x"), lambda: tier.get(key), lambda: tier.adopt(source, key)):
        with pytest.raises(ValueError, match="not a key"):
            call()
    assert source.exists()


def test_reader_reads_any_range_from_many_threads(tier: Tier) -> None:
    data = bytes(range(256)) * 64
    tier.put("data/aa/aaaa", data)
    pool = BufferPool(8192)
    with tier.open("data/aa/aaaa") as reader:
        assert reader.size == len(data)

        def check(offset: int) -> bool:
            with pool.buffer() as buffer:
                for length in (1, 100, 4096, 8192):
                    view = buffer[: min(length, len(data) - offset)]
                    reader.read_into(offset, view)
                    if bytes(view) != data[offset : offset + len(view)]:
                        return False
            return True

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(check, [0, 1, 4095, 4096, 8192, 12288, len(data) - 1]))
        with pytest.raises(IntegrityError, match="data/aa/aaaa"):
            reader.read_into(len(data) - 10, memoryview(bytearray(11)))
        reader.close()
    with pytest.raises(IntegrityError, match="cut short"):
        tier.read("data/aa/aaaa", len(data) - 1, 2)


def test_it_says_what_it_is(tier: Tier) -> None:
    assert tier.name == "hot"
    assert tier.kind
    assert "hot" in repr(tier)
    free = tier.free_bytes()
    assert free is None or free > 0


def test_a_large_object_comes_back_and_no_part_of_it_is_listed(tier: Tier, tmp_path: Path) -> None:
    data = random.Random(7).randbytes((12 << 20) + 4097)  # three parts on S3, and some 200 RADOS objects
    source = tmp_path / "pack"
    source.write_bytes(data)
    tier.adopt(source, "data/aa/aaaa")
    assert not source.exists()
    assert list(tier.list("data/")) == [("data/aa/aaaa", len(data))]
    with tier.open("data/aa/aaaa") as reader:
        for offset, length in ((0, 1), (65535, 2), ((5 << 20) - 3, 4097), (len(data) - 5, 5), (0, len(data))):
            buffer = bytearray(length)
            reader.read_into(offset, memoryview(buffer))
            assert bytes(buffer) == data[offset : offset + length]
    tier.delete("data/aa/aaaa")
    assert not tier.exists("data/aa/aaaa")
    assert tier.clear_unfinished(-1) == []


def test_repeating_an_adopt_that_had_ended_finishes_it(tier: Tier, tmp_path: Path) -> None:
    """The process died after the last step, before the file went."""
    for size in (1000, 6 << 20):
        key, source = f"data/aa/{size}", tmp_path / "pack"
        source.write_bytes(bytes(size))
        if tier.kind in ("local", "cellar"):
            (tmp_path / "local" / "data" / "aa").mkdir(parents=True, exist_ok=True)
            os.link(source, tmp_path / "local" / key)
        else:
            copy = tmp_path / "copy"
            copy.write_bytes(bytes(size))
            tier.adopt(copy, key)
        tier.adopt(source, key)
        assert not source.exists()
        assert tier.size(key) == size
        assert tier.clear_unfinished(-1) == []


def test_it_describes_where_it_is(tier: Tier, settings: TierSettings) -> None:
    assert settings.storage in tier.describe()
