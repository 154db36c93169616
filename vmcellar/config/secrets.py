"""Secrets by reference: the configuration says where a passphrase is, never what it is.

Three kinds of reference: a file, an environment variable, a systemd credential (systemd.exec(5), LoadCredential=).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from vmcellar.errors import PermanentError

_OTHERS = 0o077


def expand(path: Path) -> Path:
    """The path with a leading `~` replaced; ValueError when there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no such user's home") from error


HostPath = Annotated[Path, AfterValidator(expand)]
"""A path of this host; a leading `~` is the user's home."""


class SecretReference(BaseModel):
    """Where a secret is. Exactly one of the three is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: HostPath | None = Field(
        default=None, description="a file that only root can read; a newline at its end is no part of it"
    )
    environment: str | None = Field(default=None, description="the name of an environment variable", min_length=1)
    credential: str | None = Field(
        default=None, description="the name of a systemd credential (LoadCredential=)", min_length=1
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("file", "environment", "credential") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of file, environment and credential")
        return self

    def describe(self) -> str:
        """Where the secret is, for messages."""
        if self.file is not None:
            return f"file {self.file}"
        if self.environment is not None:
            return f"environment variable {self.environment}"
        return f"systemd credential {self.credential}"

    def read(self) -> bytes:
        """The secret, without newlines at its end; PermanentError when it is missing or empty."""
        if self.environment is not None:
            secret = os.environ.get(self.environment, "").encode()
        else:
            secret = read_secret_file(self._path())
        secret = secret.rstrip(b"\r\n")
        if not secret:
            raise PermanentError(f"{self.describe()}: holds no passphrase", hint="put the passphrase there")
        return secret

    def exposed(self) -> bool:
        """Whether the secret's file can be read by others than its owner."""
        try:
            return self.file is not None and bool(self.file.stat().st_mode & _OTHERS)
        except OSError:
            return False

    def _path(self) -> Path:
        if self.file is not None:
            return self.file
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder is None:
            raise PermanentError(
                f"{self.describe()}: no credentials were passed to this process",
                hint=f"add LoadCredential={self.credential}:FILE to the unit, or use key: file:",
            )
        return Path(folder) / str(self.credential)


def read_secret_file(path: Path) -> bytes:
    """The bytes of a secret's file; PermanentError that names it when it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PermanentError(
            f"passphrase file {path}: no such file", hint="create it, or name another one under key: in vmcellar.yaml"
        ) from error
    except OSError as error:
        raise PermanentError(
            f"passphrase file {path}: {error.strerror}", hint="run as the user who owns it (usually root)"
        ) from error
