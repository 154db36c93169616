"""Names of key objects (docs/repository-format.md, section 2)."""

from __future__ import annotations

from datetime import UTC, datetime

KEYS = "keys/"
EPOCHS = "epochs/"
EPOCH_BYTES = 16


def epoch_name(epoch: bytes, holder: str) -> str:
    """The key of an epoch key that is sealed to one holder."""
    return f"{EPOCHS}{epoch.hex()}-{holder}"


def now() -> str:
    """When a slot was made: UTC, RFC 3339."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
