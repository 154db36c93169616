"""The secrets of a repository: what a key slot protects. Made once at `init`, never changed, never shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from vmcellar.crypto.derive import KEY_BYTES
from vmcellar.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class Secrets:
    """Four independent random keys of 32 bytes.

    `ids` keys the names of chunks and nodes, so that equal disks in two repositories share no name; `meta` seals
    maps, tables, index and points; `signing` is the seed of the Ed25519 key; `data` opens disk bytes.
    """

    ids: bytes = field(repr=False)
    meta: bytes = field(repr=False)
    signing: bytes = field(repr=False)
    data: bytes = field(repr=False)

    @classmethod
    def random(cls) -> Secrets:
        """New secrets from the kernel's generator."""
        return cls(*(os.urandom(KEY_BYTES) for _ in range(4)))

    def to_bytes(self) -> bytes:
        """The form that a slot seals."""
        return self.ids + self.meta + self.signing + self.data

    @classmethod
    def from_bytes(cls, data: bytes) -> Secrets:
        """The secrets back; IntegrityError when it is not four keys."""
        if len(data) != 4 * KEY_BYTES:
            raise IntegrityError("a key slot does not hold the four keys of a repository")
        return cls(*(data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES)))
