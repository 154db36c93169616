"""Every `vmcellar` command that README and docs name exists, and takes the options that they give it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from vmcellar.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOT_COMMAND: Any = typer.main.get_command(app)
"""Typer's own kind of Click command; groups have `commands`."""


def typed(text: str) -> Iterator[str]:
    """Commands in fenced blocks, up to a comment, and in `code` within a line."""
    for block in re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL):
        yield from (line.removeprefix("$ ") for line in block.splitlines())
    yield from re.findall(r"`([^`\n]+)`", text)


def commands(text: str) -> Iterator[list[str]]:
    """Each command's words."""
    for line in typed(text):
        match = re.match(r"(?:[A-Z_]+=\S+ +)*vmcellar (?P<rest>[^#|;&>]*)", line.strip())
        if match and not re.search(r"\b1(?:\\n)?$", match["rest"]):  # "vmcellar data pack 1": a label of the format
            words = re.sub(r"[\[\]()…]", " ", match["rest"]).replace(" \\", "")
            yield shlex.split(words)


def problem(words: list[str]) -> str:
    """What is wrong with a command; empty when nothing is."""
    here = ROOT_COMMAND
    options = {name for parameter in here.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            if name not in options | {"--help", "-h"} and not name.endswith("-"):
                return f"{here.name} has no option {name}"
        elif hasattr(here, "commands"):
            if set(word) & set("|/") or word.isupper():
                return ""
            found = here.commands.get(word)
            if found is None:
                return f"{here.name} has no command {word}" if "." not in word and "/" not in word else ""
            here = found
            options |= {name for parameter in here.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_exist_with_their_options(page: Path) -> None:
    wrong = {" ".join(words): problem(words) for words in commands(page.read_text()) if problem(words)}
    assert wrong == {}


def test_there_is_something_to_check() -> None:
    assert sum(1 for page in PAGES for _ in commands(page.read_text())) > 100


@pytest.mark.parametrize(
    "text", ["`vmcellar bakup web1`", "`vmcellar backup web1 --fulll`", "```sh\nvmcellar key ad\n```"]
)
def test_this_test_sees_what_is_wrong(text: str) -> None:
    assert [problem(words) for words in commands(text)] != [""]


def test_every_command_is_in_the_docs() -> None:
    named = {words[0] for page in PAGES for words in commands(page.read_text()) if words}
    assert set(ROOT_COMMAND.commands) - named == set()
