"""Every `vmcellar` command that README and docs name exists, and takes the options that they give it.

Those in blocks, which people copy, are parsed as the command line parses them, with their arguments and values.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.docs.pages import PAGES, inline, typed
from vmcellar.cli.main import app

ROOT_COMMAND: Any = typer.main.get_command(app)
"""Typer's own kind of Click command; groups have `commands`."""

BAD_USE: Any = typer.BadParameter.__base__
AT_ONCE = {"--help", "--version", "--install-completion"}
"""Options that do their work while they are parsed."""


def commands(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words of each `vmcellar` command."""
    for line in lines:
        for part in re.split(r"&&|;|\|(?!\w)", line):
            match = re.match(r"(?:[A-Z_]+=\S+ +)*(?:/opt/vmcellar/bin/)?vmcellar (?P<rest>[^#>]*)", part.strip())
            if match and not re.search(r"\b1(?:\\n)?$", match["rest"]):  # "vmcellar data pack 1": a label of the format
                words = re.sub(r"[\[\]()…]", " ", match["rest"].partition("|")[0]).replace(" \\", "")
                yield shlex.split(words)


def problem(words: list[str]) -> str:
    """What is wrong with a command that may be cut short; empty when nothing is."""
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


def refusal(words: list[str]) -> str:
    """What the command line has against a whole command before it would do anything; empty when nothing."""
    if AT_ONCE & set(words):
        return problem([word for word in words if word not in AT_ONCE])
    command, arguments, context = ROOT_COMMAND, words, None
    try:
        while True:
            context = command.make_context(command.name, list(arguments), parent=context)
            arguments = [*context._protected_args, *context.args]
            if not hasattr(command, "commands") or not arguments:
                return ""
            _, command, arguments = command.resolve_command(context, arguments)
    except BAD_USE as error:
        return str(error.format_message())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_exist_with_their_options(page: Path) -> None:
    text = page.read_text()
    wrong = {" ".join(words): problem(words) for words in commands(inline(text)) if problem(words)}
    assert wrong == {}
    wrong = {" ".join(words): refusal(words) for words in commands(typed(text)) if refusal(words)}
    assert wrong == {}


def test_there_is_something_to_check() -> None:
    assert sum(1 for page in PAGES for _ in commands(inline(page.read_text()))) > 100
    assert sum(1 for page in PAGES for _ in commands(typed(page.read_text()))) > 60


@pytest.mark.parametrize(
    "text",
    [
        "vmcellar bakup web1",
        "vmcellar backup web1 --fulll",
        "vmcellar key ad",
        "vmcellar restore web1@latest --format vmdk --to DIR",
        "vmcellar thaw --speed",
        "vmcellar show",
        "systemctl stop x && vmcellar drian",
        "/opt/vmcellar/bin/vmcellar list web1 web2 --jsn",
    ],
)
def test_this_test_sees_what_is_wrong(text: str) -> None:
    (words,) = commands(typed(f"```sh\n{text}   # as it is typed\n```\n"))
    assert refusal(words) != ""


@pytest.mark.parametrize("text", ["vmcellar bakup web1", "vmcellar backup web1 --fulll"])
def test_this_test_sees_what_is_wrong_within_a_line(text: str) -> None:
    assert [problem(words) for words in commands(inline(f"as in `{text}`"))] != [""]


def test_every_command_is_in_the_docs() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    named = {words[0] for words in commands([*inline(text), *typed(text)]) if words}
    assert set(ROOT_COMMAND.commands) - named == set()
