"""What a real S3 server and the way to it can do to a tier; every planned fault must have fired."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.ceph import Cluster
from lab.faultproxy import FaultProxy, fault_proxy
from vmcellar.config.tiers import TierSettings
from vmcellar.errors import IntegrityError, PermanentError, TransientError
from vmcellar.tiers.base import ArchivedError, NotFoundError
from vmcellar.tiers.retry import Patience
from vmcellar.tiers.s3 import S3Tier

MIB = 1 << 20


def open_s3(settings: TierSettings, folder: Path) -> S3Tier:
    return S3Tier(settings, staging=folder / "staging", patience=Patience(attempts=3, pause=0))


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[FaultProxy]:
    with fault_proxy(cluster.endpoint) as made:
        yield made
        assert made.unfired() == []


@pytest.fixture
def s3(s3_settings: TierSettings, proxy: FaultProxy, tmp_path: Path) -> S3Tier:
    """A tier behind the proxy that does not wait between attempts."""
    return open_s3(s3_settings.model_copy(update={"endpoint": proxy.endpoint}), tmp_path)


@pytest.fixture
def hasty(s3: S3Tier, tmp_path: Path) -> S3Tier:
    """The same place for one that takes two seconds of silence for a failure, with attempts to spare."""
    settings = s3.settings.model_copy(update={"timeout": 2})
    return S3Tier(settings, staging=tmp_path / "staging", patience=Patience(attempts=8, pause=0))


def pack(folder: Path, size: int = 12 * MIB) -> Path:
    path = folder / "pack"
    path.write_bytes(bytes(range(256)) * (size // 256))
    return path


@pytest.mark.parametrize("kind", ["reset", "lost-answer", "damage-request"])
def test_a_put_survives_what_passes(s3: S3Tier, proxy: FaultProxy, kind: str) -> None:
    proxy.will(kind, "PUT")  # type: ignore[arg-type]
    s3.put("points/one", b"one" * 100)
    assert s3.get("points/one") == b"one" * 100


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable")])
def test_a_busy_server_is_asked_again(s3: S3Tier, proxy: FaultProxy, status: int, code: str) -> None:
    for method in ("PUT", "GET", "DELETE"):
        proxy.will("status", method, status=status, code=code, times=2)
    s3.put("points/one", b"one")
    assert s3.get("points/one") == b"one"
    s3.delete("points/one")
    assert not s3.exists("points/one")


def test_a_server_that_stays_busy_ends_as_transient(s3: S3Tier, proxy: FaultProxy) -> None:
    proxy.will("status", "PUT", times=3)
    with pytest.raises(TransientError, match="SlowDown"):
        s3.put("points/one", b"one")
    assert not s3.exists("points/one")


@pytest.mark.parametrize("kind", ["reset", "cut"])
def test_reads_survive_what_passes(s3: S3Tier, proxy: FaultProxy, tmp_path: Path, kind: str) -> None:
    source = pack(tmp_path)
    data = source.read_bytes()
    s3.adopt(source, "data/aa/aaaa")
    proxy.will(kind, "GET", path="aaaa", times=2)  # type: ignore[arg-type]
    assert s3.read("data/aa/aaaa", 5 * MIB, 4096) == data[5 * MIB : 5 * MIB + 4096]


def test_silence_is_given_up_and_asked_again(hasty: S3Tier, proxy: FaultProxy) -> None:
    proxy.will("silence", "PUT")
    proxy.will("silence", "GET", path="points/one")
    hasty.put("points/one", b"one")
    assert hasty.get("points/one") == b"one"


def test_damaged_bytes_of_an_object_are_seen(s3: S3Tier, proxy: FaultProxy) -> None:
    s3.put("points/one", b"one" * 100)
    proxy.will("damage-answer", "GET", path="points/one")
    with pytest.raises(IntegrityError, match="points/one is not what was written"):
        s3.get("points/one")


@pytest.mark.parametrize("kind", ["reset", "lost-answer", "damage-request"])
def test_every_step_of_an_upload_in_parts_survives(s3: S3Tier, proxy: FaultProxy, tmp_path: Path, kind: str) -> None:
    source = pack(tmp_path)
    data = source.read_bytes()
    if kind != "damage-request":
        proxy.will(kind, "POST", path="uploads")  # type: ignore[arg-type]
        proxy.will(kind, "POST", path="uploadId=")  # type: ignore[arg-type]
    proxy.will(kind, "PUT", path="partNumber=2")  # type: ignore[arg-type]
    s3.adopt(source, "data/aa/aaaa")
    assert not source.exists()
    assert s3.read("data/aa/aaaa", 0, len(data)) == data
    left = 1 if kind == "lost-answer" else 0  # the upload whose answer was lost has no name that we know
    assert len(s3.clear_unfinished(-60)) == left
    assert s3.clear_unfinished(-60) == []


def test_an_upload_that_fails_is_aborted_and_keeps_the_file(s3: S3Tier, proxy: FaultProxy, tmp_path: Path) -> None:
    source = pack(tmp_path)
    proxy.will("status", "PUT", path="partNumber=2", times=3)
    with pytest.raises(TransientError, match="data/aa/aaaa"):
        s3.adopt(source, "data/aa/aaaa")
    assert source.exists()
    assert not s3.exists("data/aa/aaaa")
    assert s3.clear_unfinished(-60) == []
    s3.adopt(source, "data/aa/aaaa")
    assert s3.exists("data/aa/aaaa")


def test_uploads_of_dead_writers_are_found_and_removed_and_young_ones_stay(
    s3: S3Tier, proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = pack(tmp_path)
    proxy.will("status", "PUT", path="partNumber=2", times=3)
    proxy.will("reset", "DELETE", path="uploadId=", times=3)
    with caplog.at_level(logging.WARNING), pytest.raises(TransientError):
        s3.adopt(source, "data/aa/aaaa")
    assert "could not be aborted" in caplog.text
    assert s3.clear_unfinished(3600) == []
    assert s3.clear_unfinished(-60) == ["data/aa/aaaa"]
    assert s3.clear_unfinished(-60) == []


def test_a_listing_is_whole_over_many_pages_or_an_error(
    s3: S3Tier, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcellar.tiers.s3.PAGE_KEYS", 7)
    keys = [f"leases/{number:02x}" for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: s3.put(key, b"x"), keys))
    proxy.will("cut", "GET", path="continuation-token")
    assert [key for key, _ in s3.list("leases/")] == keys
    assert sum("continuation-token" in request for request in proxy.requests) >= 3
    proxy.will("status", "GET", path="continuation-token", times=3)
    with pytest.raises(TransientError, match="leases/"):
        list(s3.list("leases/"))


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(400, "ExpiredToken", "renew"), (403, "RequestTimeTooSkewed", "chrony"), (403, "QuotaExceeded", "quota")],
)
def test_what_no_retry_mends_fails_at_once(s3: S3Tier, proxy: FaultProxy, status: int, code: str, words: str) -> None:
    proxy.will("status", "PUT", status=status, code=code)
    with pytest.raises(PermanentError, match=code) as caught:
        s3.put("points/one", b"one")
    assert words in caught.value.hint
    assert not s3.exists("points/one")


def test_an_archived_object_names_what_to_type(s3: S3Tier, proxy: FaultProxy) -> None:
    s3.put("data/aa/aaaa", b"pack")
    proxy.will("status", "GET", path="aaaa", status=403, code="InvalidObjectState")
    with pytest.raises(ArchivedError, match="data/aa/aaaa lies in an archive class") as caught:
        s3.read("data/aa/aaaa", 0, 4)
    assert "vmcellar thaw" in caught.value.hint


def test_a_server_without_conditional_puts_is_served_all_the_same(s3: S3Tier, proxy: FaultProxy) -> None:
    proxy.will("status", "PUT", status=501, code="NotImplemented")
    s3.put("points/one", b"one")
    assert s3.get("points/one") == b"one"
    with pytest.raises(PermanentError, match="exists already"):
        s3.put("points/one", b"two")


def test_wrong_keys_and_a_missing_bucket_are_named(
    s3_settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PermanentError, match="there is no bucket nowhere-such") as caught:
        open_s3(s3_settings.model_copy(update={"storage": "s3://nowhere-such/x"}), tmp_path)
    assert "s3 mb" in caught.value.hint
    monkeypatch.setenv("LAB_SECRET", "wrong")
    with pytest.raises(PermanentError, match="s3://") as caught:
        open_s3(s3_settings, tmp_path)
    assert "wrong" not in str(caught.value)


def test_a_bucket_that_goes_never_looks_empty(s3: S3Tier) -> None:
    s3.client.delete_bucket(Bucket=s3.bucket)
    for call in (
        lambda: list(s3.list("points/")),
        lambda: s3.exists("points/one"),
        lambda: s3.get("points/one"),
        lambda: s3.put("points/one", b"1"),
    ):
        with pytest.raises(PermanentError, match="bucket") as caught:
            call()
        assert not isinstance(caught.value, NotFoundError)


def fill(s3: S3Tier) -> None:
    for number in range(50):
        s3.put(f"points/{number}", bytes(MIB))


def test_a_full_quota_is_permanent_and_names_the_way_out(cluster: Cluster, s3: S3Tier) -> None:
    cluster.call("radosgw-admin", "quota", "set", "--quota-scope=user", "--uid=lab", "--max-size=1")
    cluster.call("radosgw-admin", "quota", "enable", "--quota-scope=user", "--uid=lab")
    try:
        with pytest.raises(PermanentError, match="QuotaExceeded") as caught:
            fill(s3)
        assert "prune" in caught.value.hint
    finally:
        cluster.call("radosgw-admin", "quota", "disable", "--quota-scope=user", "--uid=lab")


def test_packs_alone_go_to_the_class_that_was_chosen(s3_settings: TierSettings, tmp_path: Path) -> None:
    s3 = open_s3(s3_settings.model_copy(update={"storage_class": "STANDARD"}), tmp_path)
    s3.put("data/aa/aaaa", b"pack")
    assert s3._arguments("data/aa/aaaa", {})["StorageClass"] == "STANDARD"
    for key in ("meta/aa/aaaa", "points/one", "index/one"):
        assert "StorageClass" not in s3._arguments(key, {})
