"""What else README and docs have people type: `./run`, Python's modules, Prefect, systemd, files of the source."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from cyclopts import App, CycloptsError, MissingArgumentError
from prefect.cli import _app as prefect_cli

from bench.__main__ import NAMES
from tests.docs.pages import PAGES, ROOT, inline, typed

PREFECT: App = prefect_cli._app  # `prefect.cli.app` is a function that runs it; this is what it runs
RUN = (ROOT / "run").read_text()
COMMANDS = set(re.findall(r"^([a-z]+)\)", RUN, re.MULTILINE)) | {"help"}
PACKAGES = {word for text in re.findall(r'packages="([^"]*)"', RUN) for word in text.split()}
UNITS = {path.stem for path in (ROOT / "deployments" / "systemd").glob("*.service")}
BENCHES = "\n".join(path.read_text() for path in (ROOT / "bench").glob("*.py"))
IDENTITY = "0193f1e0-0000-7000-8000-000000000000"
ASSIGNMENT = re.compile(r"^(?:[A-Z_]+=\S+ +)+")
SOURCE = ("deployments/", "tests/", "docs/", "lab/", "bench/", "tools/", "notebooks/", ".ci/")


def lines(text: str) -> Iterator[list[str]]:
    """The words of each command, without the variables before it."""
    for line in [*typed(text), *inline(text)]:
        for part in re.split(r" && |; ", line):
            try:
                words = shlex.split(ASSIGNMENT.sub("", part.strip()).replace("[PATHS]", ""))
            except ValueError:  # a quotation mark in what is no command
                continue
            if words:
                yield words


def problem(words: list[str]) -> str:
    """What is wrong with a command; empty when nothing is, or when it is of no kind that is known here."""
    program, *rest = words
    known = KINDS.get(program.rpartition("/")[2])
    return known(rest) if known and rest else ""


def _of_run(rest: list[str]) -> str:
    if rest[0] not in COMMANDS:
        return f"./run has no command {rest[0]}"
    if rest[0] != "bench" or len(rest) == 1 or rest[1] == "NAME":
        return ""
    options = [word for word in rest[2:] if word.startswith("--") and f'"{word}"' not in BENCHES]
    return f"no bench {rest[1]}" if rest[1] not in NAMES else f"no option {options}" if options else ""


def _of_prefect(rest: list[str]) -> str:
    try:
        PREFECT.parse_args(
            [IDENTITY if word == "ID" else word for word in rest], exit_on_error=False, print_error=False
        )
    except MissingArgumentError:  # a command is named within a line, perhaps without its arguments
        return ""
    except CycloptsError as error:
        return str(error)
    return ""


def _of_python(rest: list[str]) -> str:
    return f"no module {rest[1]}" if rest[0] == "-m" and not find_spec(rest[1]) else ""


def _of_systemctl(rest: list[str]) -> str:
    unknown = {word for word in rest if word.startswith("vmcellar-")} - UNITS
    return f"no unit {sorted(unknown)}" if unknown else ""


def _of_apt(rest: list[str]) -> str:
    unknown = {word for word in rest[1:] if not word.startswith("-")} - PACKAGES
    return f"not among the packages of ./run: {sorted(unknown)}" if unknown else ""


KINDS: dict[str, Callable[[list[str]], str]] = {
    "run": _of_run,
    "prefect": _of_prefect,
    "python": _of_python,
    "python3": _of_python,
    "systemctl": _of_systemctl,
    "apt": _of_apt,
}


def missing(words: Iterable[str]) -> list[str]:
    """The files of the source that a command names and that are not there."""
    named = [word.partition("::")[0].rstrip(".,") for word in words if word.startswith(SOURCE)]
    return [word for word in named if not any(ROOT.glob(re.sub(r"<[a-z]+>", "*", word)))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_else_is_typed_exists(page: Path) -> None:
    wrong = {" ".join(words): problem(words) or missing(words) for words in lines(page.read_text())}
    assert {command: why for command, why in wrong.items() if why} == {}


@pytest.mark.parametrize(
    "command",
    [
        "./run tests",
        "./run bench bakup",
        "./run bench backup --turns 5",
        "python -m deployments.sreve",
        "prefect worker start --poll vmcellar",
        "prefect flow-run cancle ID",
        "systemctl stop vmcellar-server vmcellar-srv",
        "apt install qemu-untils",
        "VMCELLAR_FAULTS=1 ./run test tests/flows/test_fault.py",
    ],
)
def test_this_test_sees_what_is_wrong(command: str) -> None:
    (words,) = lines(f"```sh\n{command}  # so\n```\n")
    assert problem(words) or missing(words)


def test_there_is_something_to_check() -> None:
    every = [words for page in PAGES for words in lines(page.read_text())]
    for program, least in (("./run", 30), ("prefect", 8), ("systemctl", 8), ("apt", 2)):
        assert sum(words[0] == program for words in every) >= least, program
