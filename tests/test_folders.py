"""Folders that QEMU goes through are passable whatever the umask is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmcellar.folders import fitting, make_passable


@pytest.fixture(params=[0o077, 0o022, 0])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_all_that_is_made_lets_others_through_and_what_was_there_stays(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    make_passable(tmp_path / "a" / "b")
    make_passable(tmp_path / "a" / "b")
    assert [oct(path.stat().st_mode & 0o777) for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")] == [
        "0o700",
        "0o711",
        "0o711",
    ]


@pytest.mark.parametrize("name", ["web", "x" * 250, "ё" * 125])
def test_a_name_that_fits_stays(name: str) -> None:
    assert fitting(name) == name


def test_long_names_become_short_ones_that_differ(tmp_path: Path) -> None:
    names = {fitting(letter * 251) for letter in "xyz"} | {fitting("ё" * 126)}
    assert len(names) == 4
    for name in names:
        (tmp_path / f"{name}.lock").touch()
