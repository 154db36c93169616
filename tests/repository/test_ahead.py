"""Keys that are opened beside a command's imports: used once, by whom they are for, and never instead of an error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmcellar.config.model import Config
from vmcellar.crypto import passphrase
from vmcellar.errors import PermanentError
from vmcellar.repository import ahead
from vmcellar.repository.ahead import unlock_ahead
from vmcellar.repository.repository import Repository

COST = passphrase.Argon2Cost(8 << 10, 1, 1)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of a repository that is there."""
    monkeypatch.setattr(passphrase, "Argon2Cost", lambda *costs: type(COST)(*costs) if costs else COST)
    return made(tmp_path, "one")


def settings(folder: Path, name: str) -> dict[str, object]:
    key = {"file": str(folder / "passphrase")}
    return {"tiers": {"hot": str(folder / name)}, "key": key, "state": str(folder / "state")}


def made(folder: Path, name: str) -> Config:
    (folder / "passphrase").write_text("correct horse\n")
    config = Config.model_validate(settings(folder, name))
    Repository.init(config).close()
    return config


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The passphrases of which Argon2 made keys; nothing is left begun after the test."""
    found: list[bytes] = []
    real = passphrase._stretch

    def stretch(secret: bytes, salt: bytes, cost: passphrase.Argon2Cost) -> bytes:
        found.append(secret)
        return real(secret, salt, cost)

    monkeypatch.setattr(passphrase, "_stretch", stretch)
    yield found
    ahead._begun.clear()


def test_what_was_begun_is_used_once(config: Config, derived: list[bytes]) -> None:
    unlock_ahead(config)
    for opened in (1, 2):
        Repository.open(config).close()
        assert len(derived) == opened, "the second time the keys are opened anew"


def test_it_is_not_used_for_another_repository(config: Config, derived: list[bytes], tmp_path: Path) -> None:
    other = made(tmp_path, "two")
    before = len(derived)
    unlock_ahead(config)
    repository = Repository.open(other)
    assert repository.points() == []
    repository.close()
    ahead._begun[tmp_path / "one", b"correct horse"].result()
    assert len(derived) == before + 2


def test_a_wrong_passphrase_is_told_when_the_repository_is_opened(config: Config, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("wrong\n")
    unlock_ahead(config)
    with pytest.raises(PermanentError, match="no key slot of the repository opens"):
        Repository.open(config)
    (tmp_path / "passphrase").write_text("correct horse\n")
    Repository.open(config).close()


@pytest.mark.parametrize("wanting", [{"tiers": {}}, {"key": None}, {"key": {"file": "/nowhere/passphrase"}}])
def test_what_is_wrong_with_a_configuration_is_told_later(tmp_path: Path, wanting: dict[str, object]) -> None:
    unlock_ahead(Config.model_validate({**settings(tmp_path, "one"), **wanting}))
    assert ahead._begun == {}


def test_it_begins_before_what_takes_long_to_import() -> None:
    """Speed, held by its cause."""
    program = "import sys, vmcellar.repository.ahead; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
