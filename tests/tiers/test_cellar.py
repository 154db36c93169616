"""Several tiers as one: where a pack is found, what a lost tier or a damaged copy means, and what a mirror allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.restore.world import Key
from vmcellar.config.tiers import TierSettings
from vmcellar.errors import PermanentError, TransientError
from vmcellar.tiers import registry
from vmcellar.tiers.base import NotFoundError, Tier
from vmcellar.tiers.cellar import CellarTier
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.mark import promote

KEY = "data/ab/abcd"


@pytest.fixture
def cellar(tmp_path: Path) -> CellarTier:
    """Three directories as one."""
    return CellarTier(local(tmp_path, "hot"), {name: lazily(tmp_path, name) for name in ("warm", "cold")})


def local(folder: Path, name: str) -> LocalTier:
    (folder / name).mkdir(exist_ok=True)
    return LocalTier(folder / name, name=name)


def lazily(folder: Path, name: str) -> Callable[[], Tier]:
    made = local(folder, name)
    return lambda: made


def away() -> Tier:
    raise TransientError("tier cold: no answer")


def test_a_pack_is_read_from_wherever_it_is(cellar: CellarTier) -> None:
    for name in cellar.names:
        key = f"data/ab/{name}"
        cellar.tier_named(name).put(key, name.encode())
        assert cellar.get(key) == name.encode()
        assert (cellar.size(key), cellar.exists(key)) == (len(name), True)
    assert [key for key, _ in cellar.list("data/")] == ["data/ab/cold", "data/ab/hot", "data/ab/warm"]


def test_only_packs_are_looked_for_behind_hot(cellar: CellarTier) -> None:
    cellar.tier_named("warm").put("points/one", b"a mirror's")
    assert not cellar.exists("points/one")
    assert list(cellar.list("points/")) == []
    cellar.put("points/one", b"own")
    assert cellar.get("points/one") == b"own"


def test_new_packs_go_to_hot_and_a_deleted_one_goes_everywhere(cellar: CellarTier) -> None:
    cellar.put(KEY, b"pack")
    assert cellar.hot.exists(KEY)
    cellar.tier_named("cold").put(KEY, b"pack")
    assert list(cellar.list("data/")) == [(KEY, 4)]
    cellar.delete(KEY)
    assert list(cellar.list("data/")) == []
    with pytest.raises(NotFoundError):
        cellar.delete(KEY)


def test_a_pack_that_moves_while_it_is_looked_for_is_found(tmp_path: Path) -> None:
    """From warm to hot, right after hot was asked."""
    hot, warm = local(tmp_path, "hot"), local(tmp_path, "warm")
    warm.put(KEY, b"pack")

    class Moving(LocalTier):
        def size(self, key: str) -> int:
            if warm.exists(key):
                hot.put(key, warm.get(key))
                warm.delete(key)
                raise NotFoundError("not yet here when it was asked")
            return super().size(key)

    cellar = CellarTier(Moving(tmp_path / "hot"), {"warm": lambda: warm})
    assert cellar.exists(KEY)
    assert cellar.get(KEY) == b"pack"


def test_an_open_pack_is_read_on_after_it_was_moved_or_cut_short(cellar: CellarTier) -> None:
    data = bytes(range(256)) * 100
    cellar.hot.put(KEY, data[:5000])
    cellar.tier_named("cold").put(KEY, data)
    buffer = bytearray(1000)
    with cellar.open(KEY) as reader:
        for offset in (0, 4500, 20000):
            reader.read_into(offset, memoryview(buffer))
            assert bytes(buffer) == data[offset : offset + 1000]


def test_a_tier_that_is_away_is_no_missing_pack(tmp_path: Path) -> None:
    cellar = CellarTier(local(tmp_path, "hot"), {"warm": lazily(tmp_path, "warm"), "cold": away})
    for name in ("hot", "warm"):
        cellar.tier_named(name).put(f"data/ab/{name}", b"there")
        assert cellar.exists(f"data/ab/{name}")
    with pytest.raises(TransientError, match="no answer"):
        cellar.exists(KEY)
    with pytest.raises(TransientError, match="no answer"):
        list(cellar.list("data/"))
    with pytest.raises(TransientError, match="no answer"):
        cellar.delete("data/ab/warm")
    assert cellar.get("data/ab/warm") == b"there"
    cellar.put("data/ab/new", b"a backup goes on")


class Places:
    """What `open_tiers` asks of a configuration."""

    key = Key()

    def __init__(self, folder: Path, hot: str = "hot") -> None:
        self.state, self.hot = folder / "state", folder / hot
        self.others = {"cold": TierSettings(storage=str(folder / "cold"))}

    def hot_tier(self) -> TierSettings:
        return TierSettings(storage=str(self.hot))

    def other_tiers(self) -> dict[str, TierSettings]:
        return self.others


def test_a_place_without_the_mark_is_not_a_tier(tmp_path: Path) -> None:
    """An unmounted directory is neither read as an empty tier nor filled."""
    places = Places(tmp_path)
    local(tmp_path, "hot").put("config", b"this repository")
    local(tmp_path, "cold")
    cellar = registry.open_tiers(places)
    with pytest.raises(PermanentError, match="does not carry the mark") as raised:
        cellar.exists(KEY)
    assert "vmcellar tiers add cold" in raised.value.hint
    assert registry.add_tier(places, "cold")
    assert not registry.add_tier(places, "cold")
    assert not registry.open_tiers(places).exists(KEY)


def test_a_tier_of_another_repository_is_refused(tmp_path: Path) -> None:
    places = Places(tmp_path)
    local(tmp_path, "hot").put("config", b"this repository")
    cold = local(tmp_path, "cold")
    cold.put("data/ab/ab", b"whose?")
    with pytest.raises(PermanentError, match="not the mark of a repository"):
        registry.add_tier(places, "cold")
    cold.put("config", b"another repository")
    with pytest.raises(PermanentError, match="a repository of its own"):
        registry.add_tier(places, "cold")
    cold.put("mirror", b"of another")
    with pytest.raises(PermanentError, match="another repository"):
        registry.add_tier(places, "cold")
    with pytest.raises(PermanentError, match="another repository"):
        registry.open_tiers(places).exists(KEY)


def test_a_mirror_in_the_place_of_hot_is_read_only_until_it_is_promoted(tmp_path: Path) -> None:
    hot = local(tmp_path, "hot")
    hot.put("config", b"this repository")
    registry.add_tier(Places(tmp_path), "cold")
    cold = local(tmp_path, "cold")
    rescue = Places(tmp_path, hot="cold")
    rescue.others = {}
    with pytest.raises(PermanentError, match="never completed"):
        promote(cold)
    cold.put("config", b"this repository")
    mirror = registry.open_tiers(rescue)
    assert mirror.get("config") == b"this repository"
    with pytest.raises(PermanentError, match="read only") as raised:
        mirror.put("points/one", b"")
    assert "vmcellar tiers promote" in raised.value.hint
    with pytest.raises(PermanentError, match="read only"):
        mirror.delete("config")
    promote(cold)
    registry.open_tiers(rescue).put("points/one", b"now it is the repository")
    with pytest.raises(PermanentError, match="a repository of its own"):
        registry.add_tier(Places(tmp_path), "cold")  # with the old hot tier, should it come back
