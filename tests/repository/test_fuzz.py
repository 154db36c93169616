"""Wrong inputs to every parser of stored bytes: errors of ours, at once, and nothing else.

Some ten thousand inputs, the same ones each time; `./run bench fuzz` tries a million.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.faults.fuzz import FoundError, fuzz
from tests.faults.keyparsers import cheap_stretch
from tests.faults.parser import Parser
from tests.faults.parsers import every_parser
from vmcellar.crypto import passphrase

INPUTS = 2000
SILENT = ("object names", "a run's records")
"""These raise nothing: strange names are passed over, a record that cannot be read is as good as none."""
with TemporaryDirectory() as _folder:
    NAMES = [parser.name for parser in every_parser(Path(_folder))]


@pytest.fixture
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrase, "_stretch", passphrase._stretch)  # so that it comes back
    cheap_stretch()


@pytest.mark.usefixtures("_cheap")
@pytest.mark.parametrize("name", NAMES)
def test_only_errors_of_ours(name: str, tmp_path: Path) -> None:
    (parser,) = (each for each in every_parser(tmp_path) if each.name == name)
    figures = fuzz(parser, int(INPUTS * parser.weight) + 50, seed=1)
    assert figures.kinds or name in SILENT, "no input was wrong: the mutation does nothing"


def test_a_traceback_and_a_hang_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer itself: it tells what it is for."""
    monkeypatch.setattr("tests.faults.fuzz.HANG_SECONDS", 0.2)

    def fails(data: bytes) -> None:
        assert data == b"seed", "not an error of ours"

    def hangs(data: bytes) -> None:
        while data != b"seed":
            pass

    for parse, word in ((fails, "not an error of ours"), (hangs, "no answer")):
        with pytest.raises(FoundError, match=word):
            fuzz(Parser("it", (b"seed",), parse), 50, seed=1)
