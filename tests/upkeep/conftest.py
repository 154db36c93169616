"""What the tests of upkeep share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.upkeep.world import World


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def world(tmp_path: Path, pool: ThreadPoolExecutor) -> World:
    return World.make(tmp_path, pool)
