"""The cache of checked points: it saves signature checks, and never hides an object that is not what was checked."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.repository.fakes import Buffer, FixedKeyring
from tests.repository.writing import point_of
from vmcellar.errors import IntegrityError
from vmcellar.repository import envelope, layout, points
from vmcellar.repository.points import DiskRecord, RestorePoint
from vmcellar.repository.points_cache import PointsCache
from vmcellar.repository.repository import Repository
from vmcellar.tiers.local import LocalTier

REPOSITORY = b"r" * 16
COUNT = 5


class CountingKeyring(FixedKeyring):
    """Counts the signatures that are checked."""

    def __init__(self, seed: bytes = b"seed") -> None:
        super().__init__(seed)
        self.checks = 0

    def check(self, data: Buffer, signature: bytes) -> None:
        self.checks += 1
        super().check(data, signature)


class Cellar:
    """A tier with some points, and processes that look at them with one cache folder."""

    def __init__(self, tier: LocalTier, cache: Path) -> None:
        self.tier = tier
        self.cache = cache
        self.file = cache / f"points-{REPOSITORY.hex()}.sqlite"
        disk = DiskRecord("vda", 1 << 30, "ab" * 32, 1, "qcow2", "image")
        self.points = [self.add(point_of(f"vm{n}", disk, time=1_800_000_000.0 + n)) for n in range(COUNT)]

    def add(self, point: RestorePoint) -> RestorePoint:
        point = replace(point, id=points.new_point_id(point.time), repository=REPOSITORY.hex())
        self.tier.put(layout.point_key(point.id), points.encode(FixedKeyring(), REPOSITORY, point))
        return point

    def replace(self, point_id: str, data: bytes) -> None:
        self.tier.delete(layout.point_key(point_id))
        self.tier.put(layout.point_key(point_id), data)

    def listing(self) -> tuple[list[RestorePoint], int]:
        """What a new process lists, and how many signatures it checked."""
        keyring = CountingKeyring()
        repository = Repository(self.tier, keyring, REPOSITORY, self.cache)
        try:
            return repository.points(), keyring.checks
        finally:
            repository.close()


@pytest.fixture
def cellar(tier: LocalTier, tmp_path: Path) -> Cellar:
    return Cellar(tier, tmp_path / "cache")


def test_a_second_listing_checks_no_signature_again_and_a_new_point_is_checked(cellar: Cellar) -> None:
    assert cellar.listing() == (cellar.points, COUNT)
    assert cellar.listing() == (cellar.points, 0)
    new = cellar.add(replace(cellar.points[0], time=1_900_000_000.0))
    assert cellar.listing() == ([*cellar.points, new], 1)


def test_a_point_that_is_gone_is_not_listed_and_checked_when_it_comes_back(cellar: Cellar) -> None:
    cellar.listing()
    key = layout.point_key(cellar.points[2].id)
    data = cellar.tier.get(key)
    cellar.tier.delete(key)
    assert cellar.listing() == (cellar.points[:2] + cellar.points[3:], 0)
    cellar.tier.put(key, data)
    assert cellar.listing() == (cellar.points, 1)


def test_every_flipped_bit_and_cut_is_still_found(cellar: Cellar) -> None:
    cellar.listing()
    name = cellar.points[1].id
    data = cellar.tier.get(layout.point_key(name))
    for place in range(0, len(data), 7):
        for damaged in (data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :], data[:place]):
            cellar.replace(name, damaged)
            with pytest.raises(IntegrityError, match=name):
                cellar.listing()
    cellar.replace(name, data)
    assert cellar.listing() == (cellar.points, 0)


def test_a_point_sealed_anew_without_the_signing_key_is_refused(cellar: Cellar) -> None:
    """Of the same name and length: whoever has the metadata key, but cannot sign."""
    cellar.listing()
    name = cellar.points[1].id
    data = cellar.tier.get(layout.point_key(name))
    keyring = FixedKeyring()
    plain = envelope.unwrap(keyring, layout.POINT_MAGIC, layout.POINT_SEAL, name.encode(), data)
    forged = plain.replace(b'"vm1"', b'"vm9"')
    assert forged != plain
    cellar.replace(name, envelope.wrap(keyring, layout.POINT_MAGIC, layout.POINT_SEAL, name.encode(), forged))
    with pytest.raises(IntegrityError, match="signature"):
        cellar.listing()


def test_another_points_object_under_a_known_name_is_refused(cellar: Cellar) -> None:
    cellar.listing()
    cellar.replace(cellar.points[1].id, cellar.tier.get(layout.point_key(cellar.points[0].id)))
    with pytest.raises(IntegrityError, match=cellar.points[1].id):
        cellar.listing()


def test_entries_made_without_the_signing_key_do_not_pass(cellar: Cellar) -> None:
    """A cache file forged by somebody who cannot sign: its entries are as good as none."""
    forger = PointsCache(FixedKeyring(b"another"), REPOSITORY, cellar.file)
    every = [point.id for point in cellar.points]
    forger.update((), {name: forger.digest(name, cellar.tier.get(layout.point_key(name))) for name in every})
    assert len(forger.load()) == COUNT
    assert cellar.listing() == (cellar.points, COUNT)


@pytest.mark.parametrize("junk", [b"", b"not a database" * 500, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_lost_or_damaged_cache_costs_time_alone(cellar: Cellar, junk: bytes) -> None:
    cellar.listing()
    cellar.file.write_bytes(junk)
    assert cellar.listing() == (cellar.points, COUNT)
    assert cellar.listing()[0] == cellar.points
    cellar.file.unlink(missing_ok=True)
    assert cellar.listing() == (cellar.points, COUNT)
    assert cellar.listing() == (cellar.points, 0)


def test_without_a_folder_to_write_to_points_are_listed_all_the_same(cellar: Cellar) -> None:
    cellar.listing()
    cellar.file.unlink()
    cellar.file.mkdir()
    assert cellar.listing() == (cellar.points, COUNT)
    assert cellar.listing() == (cellar.points, COUNT)


def test_the_file_tells_nothing_but_ids(cellar: Cellar) -> None:
    cellar.listing()
    held = cellar.file.read_bytes()
    assert cellar.points[0].id.encode() in held
    assert cellar.file.stat().st_mode & 0o077 == 0
    for secret in (b"vm0", b"vm1", b"vda", b"image", b"ab" * 32, b"\xab" * 32):
        assert secret not in held


def test_the_newest_point_of_a_vm_is_found_without_reading_older_ones(
    cellar: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when many points of other VMs are newer, and when several are of one second."""
    monkeypatch.setattr("vmcellar.repository.repository._NEWEST", 4)
    last = [cellar.add(replace(cellar.points[1], time=1_900_000_000.0 + n / 8)) for n in range(6)]
    others = [cellar.add(replace(cellar.points[0], time=1_900_000_001.0 + n)) for n in range(6)]
    cellar.replace(cellar.points[3].id, b"damaged")
    repository = Repository(cellar.tier, FixedKeyring(), REPOSITORY, cellar.cache)
    assert repository.point("vm1@latest") == last[-1]
    assert repository.point("vm0@latest") == others[-1]
    with pytest.raises(IntegrityError, match=cellar.points[3].id):
        repository.point("vm2@latest")
    repository.close()


class RemoteTier(LocalTier):
    """No point comes before all are asked for: a barrier that breaks if they are read one after the other."""

    kind = "s3"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.together = threading.Barrier(COUNT, timeout=60)

    def get(self, key: str) -> bytes:
        if key.startswith(layout.POINTS):
            self.together.wait()
        return super().get(key)


def test_points_of_a_remote_tier_are_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "hot").mkdir()
    cellar = Cellar(LocalTier(tmp_path / "hot"), tmp_path / "cache")
    cellar.tier = RemoteTier(tmp_path / "hot")
    assert cellar.listing()[0] == cellar.points
    path = tmp_path / "hot" / layout.point_key(cellar.points[0].id)
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    with pytest.raises(IntegrityError):
        cellar.listing()
