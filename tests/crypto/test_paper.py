"""Keys on paper: back again also when typed badly, and every typing error is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.crypto import paper
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import UsageError

SECRETS = Secrets(b"i" * 32, b"m" * 32, b"s" * 32, (b"d" * 32, b"e" * 32))


@given(key=st.binary(min_size=32, max_size=32), masters=st.integers(0, 4))
def test_secrets_come_back(key: bytes, masters: int) -> None:
    secrets = Secrets(key, key[::-1], b"s" * 32, (key,) * masters)
    assert paper.parse(paper.export(secrets, "repository 12 of host 34")) == secrets


def test_a_private_key_comes_back() -> None:
    private = PrivateKey.generate()
    assert paper.parse(paper.export(private, "recipient")) == private


def test_it_may_be_typed_in_its_own_way() -> None:
    text = paper.export(SECRETS, "mine")
    typed = "\n".join("  " + line.lower().replace("  ", " \t ").replace("o", "0") for line in text.splitlines()[3:])
    assert paper.parse(typed) == SECRETS


def test_a_sheet_is_narrow_and_plain() -> None:
    text = paper.export(SECRETS, "mine")
    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= 72


def test_every_changed_letter_names_its_line() -> None:
    lines = paper.export(SECRETS, "mine").splitlines()
    for row in range(3, len(lines)):
        for column in range(4, len(lines[row])):
            if lines[row][column] != " ":
                letter = "A" if lines[row][column] != "A" else "B"
                changed = lines[row][:column] + letter + lines[row][column + 1 :]
                with pytest.raises(UsageError, match=f"line {row - 2} of the paper key is mistyped"):
                    paper.parse("\n".join([*lines[:row], changed, *lines[row + 1 :]]))


def test_missing_and_swapped_lines_are_named() -> None:
    lines = paper.export(SECRETS, "mine").splitlines()
    for row in range(3, len(lines) - 1):
        with pytest.raises(UsageError, match=f"line {row - 2} of the paper key is missing"):
            paper.parse("\n".join(lines[:row] + lines[row + 1 :]))
    with pytest.raises(UsageError, match=r"last lines .* are missing"):
        paper.parse("\n".join(lines[:-1]))
    with pytest.raises(UsageError, match="line 1 of the paper key is missing"):
        paper.parse("\n".join([*lines[:3], lines[4], lines[3], *lines[5:]]))
    with pytest.raises(UsageError, match="missing"):
        paper.parse("")
