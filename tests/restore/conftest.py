"""A fresh repository for each test, and small file systems that fill."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.conftest import quick_cost
from tests.restore.world import Settings, World
from vmcellar.repository.repository import Repository


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An empty repository that opens quickly; its state and tier lie apart from where tests restore to."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    settings = Settings(tmp_path / "state", tmp_path / "hot")
    with ThreadPoolExecutor(2) as pool:
        world = World(settings, Repository.init(settings), pool)
        yield world
        world.repository.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MiB."""
    if os.geteuid():
        pytest.skip("needs root to mount a tmpfs")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
