"""`catalog:` where the history of backups is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, field_validator, model_validator

from vmcellar.config.secrets import SecretReference
from vmcellar.config.section import Section


class CatalogPlace(Section):
    """A PostgreSQL for all hosts; without `url`, the file `catalog.sqlite` in the state directory."""

    url: str | None = Field(
        default=None, description="postgresql://USER@HOST[:PORT]/DATABASE, with libpq's parameters behind a `?`"
    )
    password: SecretReference | None = Field(default=None, description="where the password of that user is")

    @field_validator("url")
    @classmethod
    def _names_a_database(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme != "postgresql" or len(parts.path) < 2 or "/" in parts.path[1:]:
            raise ValueError("must be like postgresql://USER@HOST:PORT/DATABASE")
        if parts.password is not None or "password" in parse_qs(parts.query):
            raise ValueError("holds a password: take it out, and say under catalog.password where it is")
        try:
            _ = parts.port
        except ValueError as error:
            raise ValueError("the port must be a number up to 65535") from error
        return value

    @model_validator(mode="after")
    def _password_is_of_a_url(self) -> Self:
        if self.password is not None and self.url is None:
            raise ValueError("password needs url: the file in the state directory has none")
        return self

    def within(self, folder: Path) -> CatalogPlace:
        """The same with the password's file taken from `folder`."""
        if self.password is None or self.password.file is None:
            return self
        return self.model_copy(
            update={"password": self.password.model_copy(update={"file": folder / self.password.file})}
        )
