"""Makes a configuration and the repository that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmcellar.cli.keyfiles import read_public
from vmcellar.config import Config, load_config, parse_config
from vmcellar.config.template import quoted, render_template, write_new_file
from vmcellar.crypto.recipient import PublicKey
from vmcellar.repository.repository import Repository

SYSTEM_STATE = Path("/var/lib/vmcellar")


@dataclass(frozen=True, slots=True)
class NewRepository:
    """What now exists."""

    config: Path
    storage: str
    repository_id: str


def create(path: Path, answers: tuple[str, Path] | None, recipients: Sequence[Path]) -> NewRepository:
    """Make the repository of the configuration at `path`; with `answers` (storage, passphrase file) write it first.

    PermanentError when there is a repository already, or the passphrase cannot be read; then a file that this call
    wrote is gone again. After a crash in between, a call without answers goes on.
    """
    keys = [read_public(file) for file in recipients]
    if answers is None:
        return _made(path, load_config(path), keys)
    storage, passphrase = answers
    text = render_template(storage, f"key:\n  file: {quoted(passphrase)}\n", _state_folder(path))
    config = parse_config(text, path)
    write_new_file(path, text)
    try:
        return _made(path, config, keys)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _made(path: Path, config: Config, recipients: Sequence[PublicKey]) -> NewRepository:
    repository = Repository.init(config, recipients)
    repository.close()
    return NewRepository(path, config.hot_tier().storage, repository.id.hex())


def _state_folder(path: Path) -> Path:
    """The system's state folder for a configuration in /etc; else one beside the file: a trial needs no root."""
    return SYSTEM_STATE if path.is_relative_to("/etc") else path.parent / "vmcellar-state"
