"""A death before and after every durable step of a commit: older points stay, the new one is whole or absent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.repository.fakes import FixedKeyring
from tests.repository.writing import back_up, read_disk
from tests.tiers.faulty import DiedError, FaultyTier
from vmcellar.errors import TransientError
from vmcellar.repository.repository import Repository
from vmcellar.tiers.local import LocalTier

SIZE = 3 << 20
FULL: list[tuple[int, bytes | int]] = [(0, b"one" * 9999), (1 << 20, b"two" * 9999)]
CHANGE: list[tuple[int, bytes | int]] = [(0, b"new" * 9999), (2 << 20, b"more" * 9999)]
STEPS = 4
"""Durable steps of an incremental: data pack, metadata pack, index part, point."""


def with_faults(tier: LocalTier, cache: Path, **faults: object) -> tuple[FaultyTier, Repository]:
    faulty = FaultyTier(tier, **faults)  # type: ignore[arg-type]  # options as they come
    return faulty, Repository(faulty, FixedKeyring(), b"r" * 16, cache)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("error", [DiedError(), TransientError("the device does not answer")])
def test_a_death_at_any_step_hurts_nothing(
    tier: LocalTier, pool: ThreadPoolExecutor, tmp_path: Path, step: int, after: bool, error: BaseException
) -> None:
    whole = Repository(tier, FixedKeyring(), b"r" * 16, tmp_path / "cache")
    first = back_up(whole, pool, FULL, SIZE)
    image = read_disk(whole, first)
    faulty, dying = with_faults(tier, tmp_path / "cache", fail_at=step, after=after, error=error)
    with pytest.raises(type(error)):
        back_up(dying, pool, CHANGE, SIZE, first)
    assert faulty.fired
    dying.close()

    again = Repository(tier, FixedKeyring(), b"r" * 16, tmp_path / "cache")
    found = again.points()
    assert found[0] == first
    assert read_disk(again, first) == image
    # A process that lives takes a point back whose writing failed, so that a retry does not make a second one.
    done = step == STEPS and after and isinstance(error, DiedError)
    assert len(found) == (2 if done else 1)
    second = found[1] if done else back_up(again, pool, CHANGE, SIZE, first)
    expected = bytearray(image)
    for offset, content in CHANGE:
        assert isinstance(content, bytes)
        expected[offset : offset + len(content)] = content
    assert read_disk(again, second) == bytes(expected)
    again.close()
    whole.close()


def test_the_order_is_packs_index_point(tier: LocalTier, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """What a reader may see after each step; the count of steps is what the test above relies on."""
    faulty, repository = with_faults(tier, tmp_path / "cache")
    first = back_up(repository, pool, FULL, SIZE)
    faulty.count = 0
    order: list[str] = []
    for name in ("adopt", "put"):
        real = getattr(faulty.inner, name)

        def noting(a: object, b: object, real: object = real, put: bool = name == "put") -> None:
            order.append(str(a if put else b).split("/")[0])
            real(a, b)  # type: ignore[operator]  # adopt or put

        setattr(faulty.inner, name, noting)
    back_up(repository, pool, CHANGE, SIZE, first)
    assert order == ["data", "meta", "index", "points"]
    assert faulty.count == STEPS
    repository.close()
