"""The examples of README and docs that are no commands: each configuration is valid, each Python example runs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tests.cli.conftest import quick_cost
from tests.docs.pages import PAGES, ROOT, blocks
from vmcellar.config import load_config, parse_config
from vmcellar.errors import UsageError
from vmcellar.repository.repository import Repository

FILE = Path("/etc/vmcellar/vmcellar.yaml")
EXAMPLES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page.read_text(), "yaml"), start=1)
]


def whole(block: str) -> str:
    """The file of which a block is the part: what is indented belongs to a job, and `0123…` is any digest."""
    block = re.sub(r"\b[0-9a-f]+…", "0" * 64, block)
    return (
        f"backups:\n  - name: example\n{textwrap.indent(textwrap.dedent(block), '    ')}" if block[0] == " " else block
    )


@pytest.mark.parametrize("block", EXAMPLES)
def test_configurations_are_valid(block: str) -> None:
    assert parse_config(whole(block), FILE)


def test_a_configuration_that_is_wrong_is_seen() -> None:
    assert len(EXAMPLES) > 10
    with pytest.raises(UsageError):
        parse_config(whole("    hoks:\n      - {when: before, run: x}\n"), FILE)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "vmcellar.yaml").write_text("tiers: {hot: repo}\nkey: {file: pass}\nstate: state\n")
    monkeypatch.setenv("VMCELLAR_CONFIG", str(tmp_path / "vmcellar.yaml"))
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    Repository.init(load_config(tmp_path / "vmcellar.yaml")).close()
    examples = list(blocks((ROOT / "docs" / "catalog.md").read_text(), "python"))
    assert [page.name for page in PAGES if "```python" in page.read_text()] == ["catalog.md"]
    for example in examples:
        exec(compile(example, "docs/catalog.md", "exec"), {})  # noqa: S102  (it is what people are told to type)
