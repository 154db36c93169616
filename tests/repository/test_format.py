"""Format version 1: a kept repository is read by this program, and by a second reader made from the format page."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.repository.make_fixture import PASSPHRASE
from tests.repository.second_reader import SecondReader
from tests.repository.writing import read_disk
from vmcellar.repository import layout
from vmcellar.repository.packs import PackReader
from vmcellar.repository.rebuild import rebuild_index
from vmcellar.repository.repository import Repository, unlock
from vmcellar.tiers.local import LocalTier

FIXTURE = Path(__file__).parent / "fixtures" / "v1"


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
