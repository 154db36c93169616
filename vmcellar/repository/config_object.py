"""The `config` object: which repository this is, of which format version (docs/repository-format.md, section 10)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository import layout

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

_FORMAT = "vmcellar repository"
_HINT = "every tier and site has a copy of it: put one in its place"


@dataclass(frozen=True, slots=True)
class RepositoryConfig:
    """What the object says, before it is checked against the keys."""

    id: bytes
    seal: bytes


def _text(repository_id: bytes, seal: bytes) -> bytes:
    fields = {"format": _FORMAT, "version": layout.FORMAT_VERSION, "id": repository_id.hex(), "seal": seal.hex()}
    return json.dumps(fields, indent=1).encode() + b"\n"


def encode(keyring: Keyring, repository_id: bytes) -> bytes:
    """The object's bytes; the seal ties the id to the keys."""
    return _text(repository_id, keyring.seal_meta(layout.CONFIG_SEAL, repository_id, b""))


def parse(data: bytes) -> RepositoryConfig:
    """What the object says; IntegrityError when it is not exactly of this form, PermanentError for a newer version."""
    try:
        fields = json.loads(data)
        version = fields["version"]
        if fields["format"] == _FORMAT and isinstance(version, int) and version > layout.FORMAT_VERSION:
            raise PermanentError(
                f"the repository has format version {version}, this vmcellar reads version {layout.FORMAT_VERSION}",
                hint="use a newer vmcellar",
            )
        found = RepositoryConfig(bytes.fromhex(fields["id"]), bytes.fromhex(fields["seal"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"the repository's config object is damaged: {error}", hint=_HINT) from error
    if len(found.id) != layout.NAME_BYTES or _text(found.id, found.seal) != data:
        raise IntegrityError("the repository's config object is damaged", hint=_HINT)
    return found


def check(keyring: Keyring, found: RepositoryConfig) -> None:
    """IntegrityError unless these keys belong to this repository."""
    try:
        keyring.open_meta(layout.CONFIG_SEAL, found.id, found.seal)
    except IntegrityError as error:
        raise IntegrityError("the config object and the keys are of different repositories", hint=_HINT) from error
