"""One entry per kind of tier: every test of the conformance suite runs against each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmcellar.config.tiers import TierSettings
from vmcellar.tiers.base import Tier
from vmcellar.tiers.registry import open_tier


@pytest.fixture(params=["local"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Tier:
    """An empty tier of each kind."""
    folder = tmp_path / str(request.param)
    folder.mkdir()
    return open_tier("hot", TierSettings(storage=str(folder)), tmp_path / "state")


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A real, small file system of its own at `folder`."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small tmpfs")
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
    if made.returncode:
        pytest.skip("this host does not let us mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False, capture_output=True)  # a test may have unmounted it


def remount_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", folder], check=True)
