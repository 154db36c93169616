"""The layers of docs/architecture.md, held by reading every import of every module.

Imports for type checkers alone (`if TYPE_CHECKING:`) are free: they do not exist when the program runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES_MOST = 400

RANKS = {
    "vmcellar": 0,
    "vmcellar.errors": 0,
    "vmcellar.boot": 0,
    "vmcellar.folders": 0,
    "vmcellar.progress": 0,
    "vmcellar.memory": 0,
    "vmcellar.expectations": 0,
    "vmcellar.config": 1,
    "vmcellar.guestfiles": 1,
    "vmcellar.crypto": 1,
    "vmcellar.tiers": 2,
    "vmcellar.policy": 2,
    "vmcellar.repository": 3,
    "vmcellar.sources": 3,
    "vmcellar.catalog": 4,
    "vmcellar.restore": 5,
    "vmcellar.backup": 5,
    "vmcellar.upkeep": 5,
    "vmcellar.analysis": 6,
    "vmcellar.engine": 6,
    "vmcellar.quality": 6,
    "tasks": 7,
    "flows": 8,
    "vmcellar.cli": 10,
    "deployments": 9,
}
"""A module imports its own room and rooms of a lower rank; two rooms of one rank do not know each other.

`vmcellar.cli` stands above `flows` and `deployments` because it may import them, but inside a function only.
"""

MODULES = sorted(path for room in ("vmcellar", "tasks", "flows", "deployments") for path in (ROOT / room).rglob("*.py"))
EVERYTHING = sorted({*MODULES, *(p for room in ("lab", "bench", "tests") for p in (ROOT / room).rglob("*.py"))})


def room_of(module: str) -> str | None:
    """The room that a dotted module name lies in; None when it is not ours."""
    parts = module.split(".")
    for length in (2, 1):
        name = ".".join(parts[:length])
        if name in RANKS and (length == 2 or parts[0] != "vmcellar" or len(parts) == 1):
            return name
    return "vmcellar.?" if parts[0] == "vmcellar" else None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(tree: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module that is imported when the program runs, and whether that happens inside a function."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            assert isinstance(node, ast.If)
            for other in node.orelse:
                yield from imports_of(other, inside_function)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, inside_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in RANKS else str(node.module)), inside_function
        else:
            yield from imports_of(node, inside_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def violations(module: str, source: str) -> list[str]:
    """What the module imports and must not."""
    room = room_of(module)
    assert room in RANKS, f"{module}: a new room needs a rank in this test and a line in docs/architecture.md"
    found = []
    for name, inside_function in imports_of(ast.parse(source)):
        if name.split(".")[0] == "prefect" and room.startswith("vmcellar"):
            found.append(f"{module} imports {name}: no Prefect below tasks/")
        other = room_of(name)
        if other is None or other == room:
            continue
        if other not in RANKS:
            found.append(f"{module} imports {name}, a room without a rank")
        elif RANKS[other] >= RANKS[room] and not (RANKS[other] == RANKS[room] == 0):
            found.append(f"{module} imports {name}, which is not below it")
        elif other in ("flows", "tasks", "deployments") and room == "vmcellar.cli" and not inside_function:
            found.append(f"{module} imports {name} at its top: the command line imports flows lazily")
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_modules_import_only_what_is_below_them(path: Path) -> None:
    assert violations(module_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmcellar.repository.packs", "import prefect"),
        ("vmcellar.backup.export", "def f():\n    from prefect.runtime import flow_run"),
        ("vmcellar.repository.packs", "from vmcellar.backup.model import X"),
        ("vmcellar.repository.packs", "from vmcellar import engine"),
        ("vmcellar.sources.nbd", "from vmcellar.repository.layout import GRID"),
        ("vmcellar.engine", "import flows.backup"),
        ("tasks.export", "def f():\n    import flows.backup"),
        ("vmcellar.cli.main", "import flows.backup"),
        ("vmcellar.cli.main", "def f():\n    from prefect import flow"),
        ("vmcellar.errors", "from vmcellar.config import Config"),
    ],
)
def test_this_test_sees_what_it_must(module: str, source: str) -> None:
    assert violations(module, source) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vmcellar.cli.backuprun", "def f():\n    import flows.backup"),
        ("vmcellar.backup.export", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vmcellar.engine"),
        ("flows.backup", "from tasks.export import export\nimport prefect"),
    ],
)
def test_this_test_allows_what_is_right(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize("path", EVERYTHING, ids=module_of)
def test_modules_stay_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LINES_MOST, f"{path.relative_to(ROOT)} has {lines} lines: split it by what it does"
