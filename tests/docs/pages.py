"""The pages for people, and what in them is meant to be typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_COMMENT = re.compile(r"(?:^|\s+)#.*$")
_BLOCK = re.compile(r"^```(?P<language>[a-z]*)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_PROMPT = re.compile(r"^(?P<indent> *)\$ ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `shows` is what the page has below it as its output, empty where it shows none.

    `place` is where its block, or it itself, begins in the page.
    """

    page: str
    place: int
    text: str
    shows: str = ""


def blocks(text: str, language: str) -> Iterator[str]:
    """The fenced blocks of a language; `language` may be a regular expression."""
    for match in _BLOCK.finditer(text):
        if re.fullmatch(language, match["language"]):
            yield match["text"]


def lines_of(block: str) -> Iterator[str]:
    """The lines of a shell block as a shell sees them: joined where they go on, without comments."""
    for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
        yield _COMMENT.sub("", line.strip().removeprefix("$ "))


def typed(text: str) -> Iterator[str]:
    """The lines of all shell blocks."""
    for block in blocks(text, "sh|"):
        yield from lines_of(block)


def inline(text: str) -> Iterator[str]:
    """What stands as `code` within a line."""
    yield from _CODE.findall(text)


def commands_of(page: Path) -> list[Command]:
    """All that a page has people type in blocks: those of shell, and whatever begins with a prompt."""
    return list(_commands(page.name, page.read_text()))


def _commands(page: str, text: str) -> Iterator[Command]:
    for match in _BLOCK.finditer(text):
        if match["language"] == "sh":
            yield from (Command(page, match.start(), line) for line in lines_of(match["text"]) if line)
        else:
            yield from _prompted(page, match.start(), match["text"])
    yield from _prompted(page, len(text), _BLOCK.sub("", text))


def _prompted(page: str, place: int, text: str) -> Iterator[Command]:
    """The commands behind a prompt `$ `, each with the lines of the same block below it."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        prompt = _PROMPT.match(line)
        if prompt is None:
            continue
        shows = []
        for after in lines[number + 1 :]:
            if not after.startswith(prompt["indent"]) or _PROMPT.match(after) or not after.strip():
                break
            shows.append(after.removeprefix(prompt["indent"]))
        yield Command(page, place, line[prompt.end() :], "\n".join(shows))


def spoken(page: Path) -> list[Command]:
    """The commands that stand as `code` within the lines of a page, each once."""
    text = _BLOCK.sub(lambda match: " " * len(match[0]), page.read_text())
    found: dict[str, Command] = {}
    for match in _CODE.finditer(text):
        if match[1].startswith("vmcellar "):
            found.setdefault(match[1], Command(page.name, match.start(), match[1]))
    return list(found.values())


def plain_blocks(page: Path) -> list[str]:
    """The blocks that are neither of a language nor commands: drawings, parts of other programs' files."""
    return [text for text in blocks(page.read_text(), "") if not _PROMPT.search(text)]
