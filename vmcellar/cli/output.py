"""Where a command's words go: results to stdout, everything else to stderr; JSON when asked."""

from __future__ import annotations

import json
import sys
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from vmcellar.errors import VmcellarError

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 1 << 16
"""Columns where stdout is no terminal: no name is cut, no line broken; a table takes what its longest names need."""


@cache
def console() -> Console:
    """The console for results; as wide as need be where stdout is no terminal, so that lines can be searched."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH, soft_wrap=False)


@cache
def error_console() -> Console:
    """The console for progress, notes and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PIPED_WIDTH)


def json_wanted() -> bool:
    """Whether --json was given. Asked of the words themselves, since they may be what is wrong."""
    return "--json" in takewhile("--".__ne__, sys.argv[1:])


def print_json(value: Any) -> None:
    """One JSON document on stdout, ending in a newline; in ASCII where stdout's encoding is not UTF-8."""
    plain = (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=plain) + "\n")


def print_error(error: VmcellarError) -> None:
    """`error: …` and the hint below it, on stderr, as plain text; with --json one line of JSON."""
    if json_wanted():
        said = {"error": error.message, "hint": error.hint, "exit": error.exit_code}
        sys.stderr.write(json.dumps(said) + "\n")
        return
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")


def note(text: str) -> None:
    """One line about the work, on stderr."""
    sys.stderr.write(f"{text}\n")
