"""What opens a repository comes back from a copy, checked, and nothing else does."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crypto.store import CHEAP
from tests.repository.writing import back_up, read_disk
from tests.tiers.faulty import FaultyTier
from vmcellar.crypto import passphrase, slots
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository import leases
from vmcellar.repository.repair_keys import repair_keys
from vmcellar.repository.repository import Repository, make, unlock
from vmcellar.tiers.base import Replaces
from vmcellar.tiers.local import LocalTier

SECRET = b"correct horse"
SIZE = 1 << 20
DISK: list[tuple[int, bytes | int]] = [(0, b"data" * 9999)]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    made = passphrase.Argon2Cost
    monkeypatch.setattr(passphrase, "Argon2Cost", lambda *costs: made(*costs) if costs else CHEAP)


class Place:
    """A repository with one point, and a mirror of it."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor, to: tuple[PrivateKey, ...] = ()) -> None:
        self.folder, self.key = folder, SECRET
        (folder / "hot").mkdir()
        self.tier = LocalTier(folder / "hot")
        make(self.tier, SECRET, [key.public for key in to])
        opened = self.open()
        self.point = back_up(opened, pool, DISK, SIZE)
        opened.close()
        shutil.copytree(folder / "hot", folder / "copy")
        self.copy = LocalTier(folder / "copy")

    def open(self, key: bytes | PrivateKey = SECRET) -> Repository:
        keyring, number = unlock(self.tier, key)
        made = Repository(self.tier, keyring, number, self.folder / "cache")
        made.index.refresh()
        return made

    def names(self, prefix: str) -> list[str]:
        if prefix == "config":
            return [prefix]
        return [name for name, _ in self.tier.list(prefix)]

    def spoil(self, name: str, place: str = "hot") -> bytes:
        path = self.folder / place / name
        data = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(data[:-9] + bytes(byte ^ 1 for byte in data[-9:-1]) + data[-1:])
        return path.read_bytes()

    def check(self, key: bytes | PrivateKey = SECRET) -> None:
        opened = self.open(key)
        assert read_disk(opened, opened.points()[0]) == (b"data" * 9999).ljust(SIZE, b"\0")
        opened.close()


@pytest.fixture
def place(tmp_path: Path, pool: ThreadPoolExecutor) -> Place:
    return Place(tmp_path, pool)


@pytest.mark.parametrize("prefix", ["config", "keys/", "epochs/"])
@pytest.mark.parametrize("was", ["damaged", "missing"])
def test_it_comes_back_and_what_was_there_is_kept(place: Place, prefix: str, was: str) -> None:
    (name,) = place.names(prefix)
    before = (place.folder / "hot" / name).read_bytes()
    bad = place.spoil(name) if was == "damaged" else None
    if bad is None:
        place.tier.delete(name)
    told = repair_keys(place.tier, place.copy, SECRET, dry_run=True)
    assert [(each.key, each.was) for each in told.repaired] == [(name, was)]
    assert place.names("quarantine/") == []
    done = repair_keys(place.tier, place.copy, SECRET)
    assert [(each.key, each.was) for each in done.repaired] == [(name, was)]
    assert place.tier.get(name) == before
    assert [place.tier.get(aside) for aside in place.names("quarantine/")] == ([bad] if bad else [])
    assert place.names("leases/") == []
    place.check()
    assert repair_keys(place.tier, place.copy, SECRET).repaired == []


@pytest.mark.parametrize("replaces", [True, False])
def test_all_of_them_at_once(place: Place, replaces: bool) -> None:
    """On a tier that replaces objects at once, and on one that does not."""
    tier = place.tier if replaces else FaultyTier(place.tier)
    assert isinstance(tier, Replaces) == replaces
    for name in [*place.names("config"), *place.names("keys/"), *place.names("epochs/")]:
        place.spoil(name)
    assert len(repair_keys(tier, place.copy, SECRET).repaired) == 3
    place.check()


def test_a_copy_that_is_damaged_too_replaces_nothing(place: Place) -> None:
    (name,) = place.names("epochs/")
    bad = place.spoil(name)
    place.spoil(name, "copy")
    report = repair_keys(place.tier, place.copy, SECRET)
    assert report.repaired == []
    assert "no whole copy" in report.not_repaired[0].reason
    assert place.tier.get(name) == bad
    assert place.names("quarantine/") == []


def test_a_copy_of_another_repository_replaces_nothing(place: Place, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other", pool)
    (name,) = place.names("config")
    place.spoil(name)
    (slot,) = place.names("keys/")
    bad = place.spoil(slot)
    with pytest.raises((IntegrityError, PermanentError)):
        repair_keys(place.tier, other.copy, SECRET)
    assert place.tier.get(slot) == bad


def test_a_wrong_passphrase_is_told_as_ever(place: Place) -> None:
    with pytest.raises(PermanentError, match="no key slot of the repository opens with this passphrase"):
        repair_keys(place.tier, place.copy, b"wrong")


def test_a_slot_that_was_removed_stays_away(place: Place) -> None:
    (first,) = place.names("keys/")
    slots.add_passphrase(place.tier, slots.unlock_secrets(place.tier, SECRET), b"new", CHEAP)
    slots.remove(place.tier, first.removeprefix("keys/"))
    (name,) = place.names("epochs/")
    place.spoil(name)
    assert [each.key for each in repair_keys(place.tier, place.copy, b"new").repaired] == [name]
    assert first not in place.names("keys/")
    place.check(b"new")


def test_what_was_sealed_to_a_removed_recipient_stays_away(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """Both recipients' objects of an epoch are lost, and one of them may not read any more."""
    keeps, gone = PrivateKey.generate(), PrivateKey.generate()
    place = Place(tmp_path, pool, (keeps, gone))
    slots.remove(place.tier, gone.public.id)
    for name in place.names("epochs/"):
        place.tier.delete(name)
    report = repair_keys(place.tier, place.copy, keeps)
    assert [each.key.rpartition("-")[2] for each in report.repaired] == [keeps.public.id]
    place.check(keeps)


def test_a_recipients_slot_comes_back_with_its_own_key(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    private = PrivateKey.generate()
    place = Place(tmp_path, pool, (private,))
    place.spoil(f"keys/{private.public.id}")
    assert len(repair_keys(place.tier, place.copy, private).repaired) == 1
    place.check(private)


def test_not_beside_a_gc(place: Place) -> None:
    keyring, _ = unlock(place.tier, SECRET)
    (name,) = place.names("epochs/")
    place.spoil(name)
    with leases.holding(place.tier, keyring, leases.GC), pytest.raises(PermanentError, match="gc runs already"):
        repair_keys(place.tier, place.copy, SECRET)
