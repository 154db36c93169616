"""The examples of docs/repository-format.md: every command is typed, and prints what the page says it prints."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.require import requires
from tests.repository.make_fixture import PASSPHRASE
from vmcellar.crypto import layout as keys
from vmcellar.repository import layout
from vmcellar.tiers import mark

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "repository-format.md").read_text()
SECTION = re.compile(r"^## (\d+)\. ", re.MULTILINE)
BETWEEN = "----- the next one"


@dataclass(frozen=True)
class Example:
    """One command, with the lines of a here-document that belong to it, and what the page shows below it."""

    command: str
    shown: tuple[str, ...]


def examples(text: str) -> list[Example]:
    found: list[Example] = []
    for line in text.splitlines():
        if line.startswith("    $ "):
            found.append(Example(line[6:], ()))
        elif line.startswith("    > "):
            found[-1] = Example(f"{found[-1].command}\n{line[6:]}", ())
        elif line.startswith("    ") and found:
            found[-1] = Example(found[-1].command, (*found[-1].shown, line[4:]))
        elif not line and found:  # an indented block that begins without a command is no output
            found.append(Example("", ()))
    return [example for example in found if example.command]


def pattern(shown: tuple[str, ...]) -> re.Pattern[str]:
    """`...` is any lines, `…` any characters of one."""
    lines = (
        r"(?:.*\n)*" if line == "..." else re.escape(line.rstrip()).replace("…", ".*") + r"[ ]*\n" for line in shown
    )
    return re.compile("".join(lines))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each command prints, all of them typed into one shell."""
    requires("xxd")
    python = tmp_path_factory.mktemp("bin") / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    script = "".join(f"{example.command}\necho '{BETWEEN}'\n" for example in examples(PAGE))
    ran = subprocess.run(
        ["sh", "-euc", f"{script}rm -r $phrases"],
        cwd=ROOT,
        env={"PATH": f"{python.parent}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.split(f"{BETWEEN}\n")[:-1]


def test_every_example_prints_what_the_page_says(printed: list[str]) -> None:
    every = examples(PAGE)
    assert len(printed) == len(every) > 40
    wrong = {
        example.command: text
        for example, text in zip(every, printed, strict=True)
        if not pattern(example.shown).fullmatch(text)
    }
    assert wrong == {}


def test_no_example_says_nothing() -> None:
    for example in examples(PAGE):
        assert example.shown != ("...",), example.command


@pytest.mark.parametrize("changed", [("2d35", "2d36"), ("vmcpack", "vmcpakc"), ("1234", "")])
def test_a_page_that_says_something_else_is_seen(printed: list[str], changed: tuple[str, str]) -> None:
    differs = PAGE.replace(*changed) if changed[1] else f"{PAGE}\n    $ true\n    something\n"
    every = [example for example in examples(differs) if example.shown]
    texts = dict(zip((example.command for example in examples(PAGE)), printed, strict=True))
    assert not all(pattern(example.shown).fullmatch(texts.get(example.command, "")) for example in every)


def test_every_kind_of_object_has_an_example() -> None:
    """In the directory tree, and in a command whose output is shown."""
    commands = " ".join(example.command for example in examples(PAGE) if example.shown)
    folders = [layout.DATA, layout.META, layout.INDEX, layout.POINTS, layout.LEASES, layout.MARKS, layout.DROPS]
    folders += [layout.PINS, layout.EVIDENCE, layout.USES, layout.WITHDRAWN, keys.KEYS, keys.EPOCHS]
    for kind in [*folders, layout.CONFIG_KEY, mark.MARK_KEY]:
        assert re.search(rf"(?:^|[\s/]){re.escape(kind)}", commands), f"no example shows {kind}"
        assert re.search(rf"^    {re.escape(kind)}", PAGE, re.MULTILINE), f"{kind} is not in the tree"


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of the kept repository."""
    fixture = ROOT / "tests" / "repository" / "fixtures" / "v1"
    here, other = (Path(shutil.copytree(fixture, tmp_path / name)) for name in ("here", "copy"))
    (tmp_path / "phrase").write_bytes(PASSPHRASE)
    return here, other


def open_object(copies: tuple[Path, Path], name: str) -> subprocess.CompletedProcess[bytes]:
    here, other = copies
    command = [sys.executable, "tools/read_vmcellar.py", str(here), "--also", str(other)]
    command += ["--passphrase-file", str(here.parent / "phrase"), "open", name]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("points/20270115T080000Z-f81c294b", -60),
        ("keys/cffe7096e76babe97c95bf749750d77a", -60),
        ("config", -10),
        ("index/fc70610a895cbeb7fae38dd6057b4491", 40),
        ("data/e2/e2d35d7cb598d18f972df06850842fd0", 120),
        ("data/e2/e2d35d7cb598d18f972df06850842fd0:0", 80),
        ("epochs/7984442d91d6ad6564b9502bdadb5703-7d42d89482cb03d9", 40),
    ],
)
def test_what_an_object_holds_is_given_from_the_copy_that_is_whole(
    copies: tuple[Path, Path], name: str, place: int
) -> None:
    path, other = (folder / name.partition(":")[0] for folder in copies)
    whole = open_object(copies, name)
    assert (whole.returncode, whole.stderr) == (0, b"")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert open_object(copies, name).stdout == whole.stdout
    other.unlink()
    refused = open_object(copies, name)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert str(path).encode() in refused.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("data/e2/e2d35d7cb598d18f972df06850842fd0:1", b"it has 1 objects, counted from 0"),
        ("data/e2/e2d35d7cb598d18f972df06850842fd0:x", b"invalid literal"),
        ("points/nothing", b"there is no object points/nothing"),
    ],
)
def test_what_is_not_there_is_one_line(copies: tuple[Path, Path], name: str, says: bytes) -> None:
    done = open_object(copies, name)
    assert (done.returncode, done.stdout) == (1, b"")
    assert says in done.stderr
    assert b"Traceback" not in done.stderr
