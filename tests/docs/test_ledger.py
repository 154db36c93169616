"""Every command of README and docs is run by a test that is named, or it is said why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.ledger import ELSEWHERE, NOT_HERE, PLAIN, PLAYED, excused, meant
from tests.docs.pages import PAGES, ROOT, Command, blocks, plain_blocks

EVERY = [command for page in PAGES for command in meant(page)]
NAMED = sorted({*PLAYED.values(), *(test for tests in ELSEWHERE.values() for test in tests.values())})


def nowhere(command: Command) -> bool:
    """Whether no test types it, and nothing says why."""
    return command.page not in PLAYED and not excused(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_run_or_it_is_said_why_not(page: Path) -> None:
    assert [command.text for command in meant(page) if nowhere(command)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_without_a_language_holds_commands_with_their_prompt(page: Path) -> None:
    """Else its commands would be seen by nobody."""
    known = PLAIN.get(page.name, [])
    assert [block for block in plain_blocks(page) if not block.strip().startswith(tuple(known))] == []


LANGUAGES = {
    "sh": "tests/docs/test_ledger.py::test_every_command_is_run_or_it_is_said_why_not",
    "yaml": "tests/docs/test_examples.py::test_configurations_are_valid",
    "python": "tests/docs/test_examples.py::test_python_examples_run",
    "sql": "tests/catalog/test_postgres.py::test_the_statements_of_the_page_make_what_its_configuration_names",
}
"""What runs or reads the blocks of each language."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_block_is_of_a_language_that_a_test_runs(page: Path) -> None:
    opened = re.findall(r"^ *(?:```|~~~)(.*)", page.read_text(), re.MULTILINE)[::2]
    assert set(opened) - {"", *LANGUAGES} == set()
    assert len(opened) == len(list(blocks(page.read_text(), ".*"))), "a block that is indented or not closed"
    assert page.name == "catalog.md" or "sql" not in opened


def test_the_ledger_names_no_command_that_is_gone() -> None:
    there = {(command.page, command.text) for command in EVERY}
    written = {(page, text) for table in (ELSEWHERE, NOT_HERE) for page, texts in table.items() for text in texts}
    assert written - there == set()
    assert not {(p, t) for p, texts in ELSEWHERE.items() for t in texts} & {
        (p, t) for p, texts in NOT_HERE.items() for t in texts
    }


@pytest.mark.parametrize("name", [*NAMED, *LANGUAGES.values()])
def test_the_tests_that_it_names_are_there(name: str) -> None:
    file, _, test = name.partition("::")
    assert re.search(rf"^def {re.escape(test)}\(", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize(("page", "name"), PLAYED.items())
def test_a_page_that_is_played_is_named_by_its_test(page: str, name: str) -> None:
    assert page in (ROOT / name.partition("::")[0]).read_text()


def test_a_command_that_nobody_runs_is_seen() -> None:
    assert len(EVERY) > 100
    assert nowhere(Command("analysis.md", 0, "vmcellar new"))
    assert not nowhere(Command("README.md", 0, "vmcellar new")), "the page's test types it"
