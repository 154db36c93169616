"""Small sealed records under their own prefix: JSON of a frozen dataclass, bound to the object's name (section 12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from vmcellar.errors import IntegrityError
from vmcellar.repository import envelope

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.tiers.base import Tier

T = TypeVar("T")

Instant = Annotated[float, Field(ge=0, lt=253_402_300_800)]
"""Seconds since the epoch that a calendar can show: up to the year 9999, no NaN."""

Pid = Annotated[int, Field(gt=0, lt=1 << 31)]
"""The number of a process, as the kernel takes it."""


@dataclass(frozen=True, slots=True)
class RecordKind(Generic[T]):
    """One kind of record: its prefix, magic, kind of seal, and type."""

    prefix: str
    magic: bytes
    seal: bytes
    adapter: TypeAdapter[T]

    def write(self, tier: Tier, keyring: Keyring, key: str, value: T) -> None:
        """Make the record durable under `key`, which must be new. Raises what the tier raises."""
        text = self.adapter.dump_json(value)
        tier.put(key, envelope.wrap(keyring, self.magic, self.seal, key.encode(), text))

    def read(self, tier: Tier, keyring: Keyring, key: str) -> T:
        """The record; IntegrityError that names it when it is damaged, forged or another's; NotFoundError."""
        data = tier.get(key)
        try:
            return self.adapter.validate_json(envelope.unwrap(keyring, self.magic, self.seal, key.encode(), data))
        except ValidationError as error:
            raise IntegrityError(f"{key}: its JSON is not of this format: {error.errors()[0]['msg']}") from error
        except IntegrityError as error:
            raise IntegrityError(
                f"{key}: {error.message}", hint=error.hint or "see docs/upkeep.md, section on damaged records"
            ) from error
