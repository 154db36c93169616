"""Constants of the format: in two places alone, each under the section of docs/repository-format.md that states it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.repository.test_format_page import PAGE, SECTION

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("vmcellar.repository.layout", "vmcellar.crypto.layout")
NAMED = re.compile(r"[sS]ections? (\d+)")
ASSIGNED = re.compile(r"^([A-Z_0-9]+): Final = ", re.MULTILINE)
UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
DERIVED = {"ABSENT", "HEADER", "TRAILER", "NODE_HEADER", "INDEX_HEADER", "ENVELOPE"}
"""Bytes of nothing, and struct formats: tables on the page."""


def sections() -> dict[int, str]:
    parts = SECTION.split(PAGE)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def constants(module: str) -> list[tuple[str, int, object]]:
    """(name, section, value) of each; the section is that of its own line, else of the comment above it."""
    made = importlib.import_module(module)
    found, section = [], 0
    for line in Path(str(made.__file__)).read_text().splitlines():
        own, named = ASSIGNED.match(line), NAMED.search(line.partition("#")[2])
        if named and not own:
            section = int(named[1])
        if own:
            found.append((own[1], int(named[1]) if named else section, getattr(made, own[1])))
    return found


EVERY = [pytest.param(*each, id=f"{module}.{each[0]}") for module in PLACES for each in constants(module)]


def forms(value: object) -> set[str]:
    """How a page may write it."""
    if isinstance(value, bytes | str):
        text = value.decode() if isinstance(value, bytes) else value
        return {text.replace("\n", "\\n").strip()}
    assert isinstance(value, int)
    found = {rf"\b{value}\b", rf"\b{value:,}\b"}
    for unit, name in UNITS:
        if value and value % unit == 0:
            found.add(rf"\b{value // unit} {name}\b")
        if value and (value << 10) % unit == 0:  # of what is counted in KiB
            found.add(rf"\b{(value << 10) // unit} {name}\b")
    return found


@pytest.mark.parametrize(("name", "section", "value"), EVERY)
def test_a_constant_stands_in_the_section_that_it_names(name: str, section: int, value: object) -> None:
    text = sections().get(section)
    assert text, f"{name} names no section of the page"
    if isinstance(value, bytes | str | int) and name not in DERIVED:
        wanted = forms(value)
        words = isinstance(value, bytes | str)
        assert any(form in text if words else re.search(form, text) for form in wanted), f"{wanted} not in {section}"


def test_all_are_looked_at() -> None:
    for module in PLACES:
        source = Path(str(importlib.import_module(module).__file__)).read_text()
        assert len(constants(module)) == len(ASSIGNED.findall(source)) > 30


@pytest.mark.parametrize("folder", ["crypto", "repository"])
def test_no_magic_and_no_context_is_anywhere_else(folder: str) -> None:
    """Bytes that begin an object, or keep one use of a key apart from another."""
    for path in (ROOT / "vmcellar" / folder).glob("*.py"):
        if path.name != "layout.py":
            found = re.findall(r'b"(?:vmc[a-z]{4}\\n|vmcellar [^"]*1[ \\][^"]*)"', path.read_text())
            others = {word for word in found if re.search("paper|cache", word)}  # no objects of a repository
            assert set(found) == others, f"{path.name} has a constant of the format: {found}"
