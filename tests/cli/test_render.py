"""How figures become words, and progress becomes bars."""

from __future__ import annotations

import sys

import pytest

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.render.text import seconds_text, size_text, time_text
from vmcellar.progress import no_progress


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536 << 20, "1.5 GiB"),
        (1010 << 20, "1010 MiB"),
        (3 << 50, "3 PiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_times() -> None:
    assert [seconds_text(value) for value in (0.421, 185, 7800)] == ["0.42 s", "3 min 5 s", "2 h 10 min"]
    assert time_text("2026-01-31T02:00:07+00:00")[4] == "-"


def test_no_bars_where_stderr_is_no_terminal() -> None:
    with progress_bars() as sink:
        assert sink is no_progress


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bars({"export": 100 << 20}) as sink:
        sink("export", 60 << 20)
        sink("export", 40 << 20)
        sink("place", 1 << 20)
    shown = capsys.readouterr().err
    assert "100.0/100.0 MiB" in shown
    assert "place" in shown
