"""What is damaged is kept under `quarantine/` before something whole takes its place."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError
from vmcellar.repository.layout import QUARANTINE

if TYPE_CHECKING:
    from vmcellar.tiers.base import Tier


def set_aside(tier: Tier, key: str) -> None:
    """Keep a copy of the object as it lies, damage and all; of one that the tier does not give back there is none."""
    with suppress(IntegrityError):
        with tier.open(key) as reader:
            data = bytearray(reader.size)
            reader.read_into(0, memoryview(data))
        tier.put(f"{QUARANTINE}{key}-{secrets.token_hex(4)}", bytes(data))
