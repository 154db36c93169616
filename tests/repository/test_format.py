"""Format version 1: a kept repository is read by this program, and by a second reader made from the format page."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.repository.make_fixture import HOLDER, HOST, LINES, NOW, PASSPHRASE, PRIVATE, TAKEN_BACK
from tests.repository.second_reader import SecondReader
from tests.repository.writing import read_disk
from vmcellar.crypto.base import EpochLockedError
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.repository import drops, evidence, layout, leases, left_out, marks, uses, withdrawn
from vmcellar.repository.packs import PackReader
from vmcellar.repository.rebuild import rebuild_index
from vmcellar.repository.repository import Repository, unlock
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.mark import check_mark
from vmcellar.upkeep import pins

FIXTURE = Path(__file__).parent / "fixtures" / "v1"


RECORDS = FIXTURE.with_name("v1-records")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy, as a test may not change the fixture."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "v1"))


def expected() -> dict[str, str]:
    found: dict[str, str] = json.loads(FIXTURE.with_suffix(".json").read_text())
    return found


def test_a_repository_of_version_1_is_read(kept: Path, tmp_path: Path) -> None:
    tier = LocalTier(kept)
    keyring, repository_id = unlock(tier, PASSPHRASE)
    repository = Repository(tier, keyring, repository_id, tmp_path / "cache")
    found = {point.id: hashlib.sha256(read_disk(repository, point)).hexdigest() for point in repository.points()}
    assert found == expected()
    shutil.rmtree(kept / "index")
    assert rebuild_index(repository).damaged == ()
    again = {point.id: hashlib.sha256(read_disk(repository, point)).hexdigest() for point in repository.points()}
    assert again == expected()
    repository.close()


def records(folder: Path, key: bytes | PrivateKey) -> Repository:
    """A copy of the repository in recipient mode, opened."""
    tier = LocalTier(Path(shutil.copytree(RECORDS, folder / "records")))
    keyring, repository_id = unlock(tier, key)
    repository = Repository(tier, keyring, repository_id, folder / "cache", lambda: NOW)
    repository.index.refresh()
    return repository


def test_a_repository_of_version_1_in_recipient_mode_is_read(tmp_path: Path) -> None:
    private = PrivateKey.from_file("v1-records.key", RECORDS.with_suffix(".key").read_bytes(), PRIVATE)
    repository = records(tmp_path, private)
    (point,) = repository.points()
    image = read_disk(repository, point)
    assert (image[: len(LINES)], any(image[len(LINES) :])) == (LINES, False)
    repository.close()
    shutil.rmtree(tmp_path / "records")
    host = records(tmp_path, HOST)
    assert host.points() == [point]
    with pytest.raises(EpochLockedError):
        read_disk(host, point)
    host.close()


def test_every_record_of_version_1_is_read(tmp_path: Path) -> None:
    """Those that no restore needs, each by the part of the program that it is for."""
    repository = records(tmp_path, HOST)
    tier, keyring = repository.tier, repository.keyring
    (point,) = repository.points()
    own, held = pins.listed(repository)
    assert own == pins.FoundPin(point.id, "", pins.Pin("before the upgrade", NOW, "kvm1"))
    assert (held.point, held.pin) == (point.id, pins.Pin("a VM runs from it: vmcellar boot web-boot", NOW, "kvm1"))
    pins.let_go(repository, point.id, HOLDER)
    assert pins.listed(repository) == [own], "its name comes from its holder"
    (name,) = marks.names_of(tier)
    assert sorted(marks.read(tier, keyring, [name])[name].packs()) == [b"\xaa" * 16, b"\xbb" * 16]
    (lease,) = leases.found(tier, keyring)
    assert (lease.objects, lease.newest.what, lease.newest.known) == ((0, 1), "backup web", (name,))
    assert (lease.stale(NOW), lease.stale(NOW + 1200), lease.stale(NOW + 1201)) == (False, False, True)
    assert list(drops.found(tier, keyring, NOW, clear=False)) == [f"data/aa/{'aa' * 16}"]
    assert uses.last(tier) == {point.id: NOW}
    assert withdrawn.was_taken_back(tier, keyring, *TAKEN_BACK)
    assert not withdrawn.was_taken_back(tier, keyring, TAKEN_BACK[0], b"another object")
    (found,) = evidence.names(tier)
    assert evidence.read(repository, found).checks[0].name == "every byte"
    assert evidence.standings(tier)[point.id].proven
    left = left_out.of_point(repository, point)
    assert left is not None
    assert (left.paths, left.ranges("vda")) == (("/var/log",), [(64 << 20, 128 << 10)])
    assert repository.index.lost() == {keyring.chunk_id(LINES)}
    check_mark(tier, tier)
    (aside,) = tier.list(layout.QUARANTINE)
    assert tier.get(aside[0]) == tier.get(layout.CONFIG_KEY)
    repository.close()


def test_a_second_reader_made_from_the_page_reads_it() -> None:
    reader = SecondReader(FIXTURE, PASSPHRASE)
    for point_id, digest in expected().items():
        point: dict[str, Any] = reader.point(point_id)
        (disk,) = point["disks"]
        image = reader.disk(disk["size"], bytes.fromhex(disk["root"]), disk["level"])
        assert hashlib.sha256(image).hexdigest() == digest
        for artifact in point["artifacts"]:
            data = b"".join(reader.read_object(bytes.fromhex(chunk), b"chunk id") for chunk in artifact["chunks"])
            assert len(data) == artifact["size"]


def test_the_second_reader_sees_the_same_tables(kept: Path) -> None:
    tier = LocalTier(kept)
    keyring, _ = unlock(tier, PASSPHRASE)
    reader = SecondReader(FIXTURE, PASSPHRASE)
    for prefix in (layout.DATA, layout.META):
        for key, _ in tier.list(prefix):
            with PackReader(tier, key, keyring) as pack:
                rows = [tuple(row.tolist()) for row in pack.toc()]
            assert [(bytes(row[0]), *row[1:]) for row in rows] == reader.toc(FIXTURE / key)


def test_nothing_of_the_disks_or_their_names_is_in_clear(kept: Path) -> None:
    for path in kept.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for secret in (b"line 0", b"third leaf", b"web", b"vda", b"domain", b"qcow2"):
                assert secret not in data, path
