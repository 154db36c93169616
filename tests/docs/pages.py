"""The pages for people, and what in them is meant to be typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_COMMENT = re.compile(r"(?:^|\s+)#.*$")


def blocks(text: str, language: str) -> Iterator[str]:
    """The fenced blocks of a language; `language` may be a regular expression."""
    for match in re.finditer(rf"^```(?:{language})\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield match[1]


def typed(text: str) -> Iterator[str]:
    """The lines of shell blocks as a shell sees them: joined where they go on, without comments."""
    for block in blocks(text, "sh|"):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            yield _COMMENT.sub("", line.strip().removeprefix("$ "))


def inline(text: str) -> Iterator[str]:
    """What stands as `code` within a line."""
    yield from re.findall(r"`([^`\n]+)`", text)
