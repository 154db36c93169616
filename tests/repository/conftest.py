"""What the tests of this room share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.repository.fakes import FixedKeyring
from vmcellar.repository.repository import Repository
from vmcellar.tiers.local import LocalTier


@pytest.fixture
def tier(tmp_path: Path) -> LocalTier:
    folder = tmp_path / "hot"
    folder.mkdir()
    return LocalTier(folder)


@pytest.fixture
def keyring() -> FixedKeyring:
    return FixedKeyring()


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as made:
        yield made


@pytest.fixture
def repository(tier: LocalTier, keyring: FixedKeyring, tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tier, keyring, b"r" * 16, tmp_path / "cache")
    yield made
    made.close()
