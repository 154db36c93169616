"""A repository, or an object in it, of a newer format version is refused by name; nothing of it is changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli
from tests.repository.make_fixture import PASSPHRASE
from vmcellar.repository import layout

FIXTURE = Path(__file__).resolve().parents[1] / "repository" / "fixtures" / "v1"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A repository, opened by `vmcellar.yaml` in the folder where commands run."""
    (tmp_path / "pass").write_bytes(PASSPHRASE)
    (tmp_path / "pass").chmod(0o600)
    settings = {"tiers": {"hot": str(tmp_path / "v1")}, "key": {"file": "pass"}, "state": "state"}
    (tmp_path / "vmcellar.yaml").write_text(yaml.safe_dump(settings))
    return Path(shutil.copytree(FIXTURE, tmp_path / "v1"))


def digests(repository: Path) -> dict[str, str]:
    files = (path for path in repository.rglob("*") if path.is_file())
    return {str(path.relative_to(repository)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    "command",
    [["list"], ["verify", "--all"], ["gc"], ["restore", "@latest", "--to", "out"], ["prune", "--keep-last", "1"]],
)
def test_a_newer_repository_is_refused_and_left_alone(cli: Cli, kept: Path, command: list[str]) -> None:
    config = kept / "config"
    config.write_text(json.dumps({**json.loads(config.read_text()), "version": layout.FORMAT_VERSION + 1, "more": 1}))
    before = digests(kept)
    done = cli(*command)
    assert done.code == 1
    assert (
        f"format version {layout.FORMAT_VERSION + 1}, this vmcellar reads version {layout.FORMAT_VERSION}" in done.err
    )
    assert "use a newer vmcellar" in done.err
    assert digests(kept) == before


def test_it_is_the_version_that_is_refused(cli: Cli, kept: Path) -> None:
    assert kept.exists()
    assert len(json.loads(cli("list", "--json").out)) == 2
