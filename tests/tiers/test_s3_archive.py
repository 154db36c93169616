"""Objects in archive classes: what their state is, and thaws of many at once; against the stand-in for Glacier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.faultproxy import FaultProxy, fault_proxy
from lab.glacier import Glacier
from vmcellar.config.prices import Speed
from vmcellar.config.tiers import TierSettings
from vmcellar.errors import PermanentError, TransientError
from vmcellar.tiers.base import Archive, ArchivedError, NotFoundError
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.retry import Patience
from vmcellar.tiers.s3 import S3Tier

KEYS = [f"data/{number:02x}/{number:032x}" for number in range(20)]
DAY = 86400


@pytest.fixture
def proxy(glacier_server: Glacier) -> Iterator[FaultProxy]:
    with fault_proxy(glacier_server.endpoint) as made:
        yield made
        assert made.unfired() == []


def open_cold(settings: TierSettings, folder: Path, **more: object) -> S3Tier:
    """A tier that does not wait between attempts."""
    settings = settings.model_copy(update=more)
    return S3Tier(settings, name="cold", staging=folder / "staging", patience=Patience(attempts=3, pause=0))


@pytest.fixture
def cold(glacier_settings: TierSettings, proxy: FaultProxy, tmp_path: Path) -> S3Tier:
    """Twenty packs in GLACIER, and a point."""
    tier = open_cold(glacier_settings, tmp_path, endpoint=proxy.endpoint)
    for key in [*KEYS, "points/one"]:
        tier.put(key, key.encode())
    return tier


def states(tier: S3Tier, keys: list[str] = KEYS) -> set[str]:
    return {state.state for state in tier.thaw_state(keys).values()}


def asked(glacier: Glacier, tier: S3Tier) -> list[tuple[str, str, int]]:
    """(key, retrieval tier, days) of each request that the server accepted from this tier."""
    found = [request for request in glacier.requests if request["bucket"] == tier.bucket]
    return sorted((str(r["key"]).removeprefix("vm-backups/"), r["tier"], r["days"]) for r in found)


def test_only_packs_are_archived(cold: S3Tier) -> None:
    assert states(cold) == {"archived"}
    assert states(cold, ["points/one"]) == {"readable"}
    assert cold.get("points/one") == b"points/one"
    with pytest.raises(ArchivedError, match=KEYS[0]) as raised:
        cold.read(KEYS[0], 0, 4)
    assert "vmcellar thaw" in raised.value.hint
    assert [key for key, _ in cold.list("data/")] == KEYS
    assert cold.size(KEYS[0]) == len(KEYS[0])


def test_one_batch_thaws_them_all(glacier_server: Glacier, cold: S3Tier) -> None:
    before = glacier_server.now
    cold.thaw([*KEYS, *KEYS, "points/one"], days=2, speed="standard")
    assert asked(glacier_server, cold) == [(key, "Standard", 2) for key in KEYS]
    assert states(cold) == {"thawing"}
    glacier_server.advance(hours=6)
    found = cold.thaw_state(KEYS)
    assert {state.state for state in found.values()} == {"thawed"}
    assert all(state.reads and state.tier == "cold" for state in found.values())
    until = found[KEYS[0]].until
    assert until is not None
    assert until % DAY == 0, "a midnight"
    assert 2 * DAY < until - before <= 3 * DAY + 6 * 3600, "days count from when it was ready, within these six hours"
    assert cold.read(KEYS[0], 0, 4) == b"data"
    glacier_server.advance(days=3)
    assert states(cold) == {"archived"}


def test_repeating_a_thaw_is_harmless(glacier_server: Glacier, cold: S3Tier) -> None:
    cold.thaw(KEYS[:5], days=1, speed="bulk")
    cold.thaw(KEYS[:6], days=1, speed="bulk")
    assert asked(glacier_server, cold) == [(key, "Bulk", 1) for key in KEYS[:6]]
    cold.thaw(KEYS[:1], days=1, speed="expedited")
    glacier_server.advance(hours=1)
    assert cold.thaw_state(KEYS[:1])[KEYS[0]].state == "thawed"
    assert states(cold, KEYS[1:6]) == {"thawing"}


def test_a_busy_server_is_asked_again_and_none_is_left_out(
    glacier_server: Glacier, cold: S3Tier, proxy: FaultProxy
) -> None:
    proxy.will("status", "POST", status=503, code="SlowDown", times=2)
    proxy.will("lost-answer", "POST")
    cold.thaw(KEYS, days=1, speed="standard")
    assert [key for key, _, _ in asked(glacier_server, cold)] == KEYS
    assert states(cold) == {"thawing"}


def test_a_batch_that_failed_is_finished_by_repeating_it(
    glacier_server: Glacier, cold: S3Tier, proxy: FaultProxy
) -> None:
    proxy.will("status", "POST", path=KEYS[7], times=3)
    with pytest.raises(TransientError, match=KEYS[7]):
        cold.thaw(KEYS, days=1, speed="standard")
    cold.thaw(KEYS, days=1, speed="standard")
    assert [key for key, _, _ in asked(glacier_server, cold)] == KEYS


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (503, "GlacierExpeditedRetrievalNotAvailable", "--speed standard"),
        (403, "AccessDenied", "list, get, put and delete"),
    ],
)
def test_what_no_retry_mends_fails_at_once(cold: S3Tier, proxy: FaultProxy, status: int, code: str, words: str) -> None:
    proxy.will("status", "POST", status=status, code=code)
    with pytest.raises(PermanentError, match=code) as raised:
        cold.thaw(KEYS[:1], days=1, speed="expedited")
    assert words in raised.value.hint


@pytest.mark.parametrize(("speed", "hours"), [("bulk", 48), ("standard", 12)])
def test_a_deep_archive_takes_longer(
    glacier_server: Glacier, glacier_settings: TierSettings, tmp_path: Path, speed: Speed, hours: int
) -> None:
    deep = open_cold(glacier_settings, tmp_path, storage_class="DEEP_ARCHIVE")
    deep.put(KEYS[0], b"pack")
    with pytest.raises(PermanentError, match="InvalidArgument"):
        deep.thaw(KEYS[:1], days=1, speed="expedited")
    deep.thaw(KEYS[:1], days=1, speed=speed)
    glacier_server.advance(hours=hours - 1)
    assert states(deep, KEYS[:1]) == {"thawing"}
    glacier_server.advance(hours=1)
    assert deep.get(KEYS[0]) == b"pack"


def test_instant_retrieval_reads_at_once(glacier_settings: TierSettings, tmp_path: Path) -> None:
    instant = open_cold(glacier_settings, tmp_path, storage_class="GLACIER_IR")
    instant.put(KEYS[0], b"pack")
    assert states(instant, KEYS[:1]) == {"readable"}
    assert instant.get(KEYS[0]) == b"pack"
    instant.thaw(KEYS[:1], days=1, speed="standard")
    assert states(instant, KEYS[:1]) == {"readable"}


def test_a_missing_object_is_missing(cold: S3Tier) -> None:
    with pytest.raises(NotFoundError, match="data/zz/none"):
        cold.thaw_state(["data/zz/none"])
    with pytest.raises(NotFoundError, match="data/zz/none"):
        cold.thaw(["data/zz/none"], days=1, speed="bulk")


def test_which_tiers_are_archives(cold: S3Tier, tmp_path: Path) -> None:
    assert isinstance(cold, Archive)
    (tmp_path / "disk").mkdir()
    assert not isinstance(LocalTier(tmp_path / "disk"), Archive)
