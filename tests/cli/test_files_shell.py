"""`vmcellar files POINT shell`: each line is done, whatever became of those before it, in one appliance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from vmcellar.cli.commands import files
from vmcellar.cli.main import app
from vmcellar.errors import CancelledError, PermanentError, UsageError


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of an appliance that is not there (tests/guestfiles has real ones)."""
    told: list[Any] = []

    def mount(name: str) -> None:
        if name == "none":
            raise PermanentError("has no file system none")
        told.append(("mount", name))

    def file_systems() -> tuple[()]:
        told.append("file systems")
        return ()

    inside = SimpleNamespace(
        guestfs=None,
        unlock=lambda keys: told.append(("unlock", keys)),
        mount=mount,
        unmount=lambda: told.append("unmount"),
        file_systems=file_systems,
    )

    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        told.append("opened")
        try:
            yield inside
        finally:
            told.append("closed")

    def get(_guestfs: object, path: bytes, to: Path | None, _cancel: object) -> tuple[Path, int]:
        if to == Path("taken"):
            raise FileExistsError("taken")
        told.append(("get", path, to))
        return Path("place"), 0

    def list_path(_guestfs: object, path: bytes) -> list[Any]:
        told.append(("ls", path))
        return []

    monkeypatch.setattr(files, "opened", opened)
    monkeypatch.setattr(files, "config_path", lambda _ctx, config: config)
    monkeypatch.setattr("vmcellar.guestfiles.fetch.get", get)
    monkeypatch.setattr("vmcellar.guestfiles.listing.list_path", list_path)
    return told


def shell(lines: str, *more: str) -> Any:
    return CliRunner().invoke(app, ["files", "POINT", "shell", *more, "-c", "/none.yaml"], input=lines)


def test_lines_are_done_in_turn_and_the_file_systems_mounted_for_each(done: list[Any]) -> None:
    result = shell("ls\n\n  ls vda1:/etc  \nget '/srv/a b' 'to here'")
    assert result.exit_code == 0, result.exception
    assert done == [
        *("opened", ("unlock", {})),
        *("unmount", "file systems"),
        *("unmount", ("mount", "vda1"), ("ls", b"/etc")),
        *("unmount", ("mount", ""), ("get", b"/srv/a b", Path("to here"))),
        "closed",
    ]


@pytest.mark.parametrize(
    "line", ["rm /etc", "get", "ls /a /b", "tar /etc", "get /a b c", "ls etc", "ls '/etc", "ls none:/", "get /a taken"]
)
def test_a_line_that_fails_ends_nothing_and_makes_the_exit_code(done: list[Any], line: str) -> None:
    result = shell(f"{line}\nls /etc\n")
    assert isinstance(result.exception, PermanentError)
    assert "1 of the commands failed" in result.exception.message
    assert result.output.count("error: ") == 1
    assert done[-2:] == [("ls", b"/etc"), "closed"]


def test_who_stops_a_script_stops_all_of_it(done: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise CancelledError("stopped")

    monkeypatch.setattr("vmcellar.guestfiles.listing.list_path", stopped)
    result = shell("ls /etc\nget /a b\n")
    assert isinstance(result.exception, CancelledError)
    assert done[-1] == "closed"
    assert not [each for each in done if each[0] == "get"]


def test_a_shell_takes_no_path(done: list[Any]) -> None:
    assert isinstance(shell("", "/etc").exception, UsageError)
    assert done == []
