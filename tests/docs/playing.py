"""A page as a play: its commands in their order, and for some of them what the laboratory does around them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.docs.ledger import PLAYED, excused, meant
from tests.docs.pages import PAGES, Command
from tests.docs.terminal import Said, Terminal


def _nothing() -> None:
    """No more than the command."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One command of a page. `says` are regular expressions that its output must have.

    `until` is for what runs until Ctrl-C: what it says when it is ready. `answers` are typed when it asks.
    """

    says: Sequence[str] = ()
    code: int = 0
    answers: Sequence[str] = ()
    before: Callable[[], object] = _nothing
    after: Callable[[], object] = _nothing
    until: str = ""


def play(page: str, terminal: Terminal, scenes: Mapping[str, Scene]) -> None:
    """Type every command of the page that the ledger does not excuse.

    Each must end with 0 unless its scene says otherwise, and none with a traceback.
    """
    assert page in PLAYED
    (path,) = [each for each in PAGES if each.name == page]
    commands = [command for command in meant(path) if not excused(command)]
    assert set(scenes) - {command.text for command in commands} == set(), "scenes of what the page does not have"
    for _, block in itertools.groupby(commands, key=lambda command: command.place):
        for text, shows in _steps(block, scenes):
            _act(terminal, text, shows, scenes.get(text, Scene()))
    terminal.press_ctrl_c()


def _steps(block: Iterator[Command], scenes: Mapping[str, Scene]) -> Iterator[tuple[str, str]]:
    """One command after the other; neighbours that are a shell's alone are one script, as `cd` and `umask` last."""
    shell: list[str] = []
    for command in block:
        if not (command.text.startswith("vmcellar ") or command.text in scenes or command.shows):
            shell.append(command.text)
            continue
        if shell:
            yield "\n".join(shell), ""
            shell = []
        yield command.text, command.shows
    if shell:
        yield "\n".join(shell), ""


def _act(terminal: Terminal, text: str, shows: str, scene: Scene) -> None:
    scene.before()
    said = terminal.begin(text, scene.until) if scene.until else terminal.type(text, scene.answers)
    shown = [re.escape(" ".join(terminal.real(line).split())) for line in shows.splitlines() if line != "..."]
    check(text, said, scene.code, (*scene.says, *shown))
    scene.after()


def check(text: str, said: Said, code: int = 0, says: Sequence[str] = ()) -> None:
    """The command ended as it must and said what it must."""
    assert said.code == code, f"{text}: exit code {said.code}\n{said.all}"
    assert "Traceback" not in said.all, f"{text}\n{said.all}"
    flat = " ".join(said.all.split())
    missing = [each for each in says if not re.search(each, flat)]
    assert missing == [], f"{text} does not say {missing}:\n{said.all}"
