"""An engine over a VM without content, for what happens around the bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backup.world import EmptySource, make_engine
from vmcellar.engine import Engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = make_engine(tmp_path)
    yield made
    made.repository.close()


@pytest.fixture
def source(engine: Engine) -> EmptySource:
    assert isinstance(engine.source, EmptySource)
    return engine.source
