"""The secrets of a repository: what key slots protect. Made once at `init`, never shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from vmcellar.crypto.layout import KEY_BYTES, MASTERS_KEPT
from vmcellar.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class Secrets:
    """Independent random keys of 32 bytes.

    `ids` keys the names of chunks and nodes, so that equal disks in two repositories share no name; `meta` seals maps,
    tables, index and points; `signing` is the seed of the Ed25519 key. `data` are the data masters, newest first, which
    open the epoch keys and so disk bytes: none in recipient mode, where only recipients can.
    """

    ids: bytes = field(repr=False)
    meta: bytes = field(repr=False)
    signing: bytes = field(repr=False)
    data: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def random(cls, *, data: bool = True) -> Secrets:
        """New secrets from the kernel's generator; `data` False for recipient mode."""
        ids, meta, signing = (os.urandom(KEY_BYTES) for _ in range(3))
        return cls(ids, meta, signing, (os.urandom(KEY_BYTES),) if data else ())

    def metadata_only(self) -> Secrets:
        """The same without the data masters: reads metadata, opens no disk bytes."""
        return replace(self, data=())

    def with_new_master(self) -> Secrets:
        """The same with a new data master before the others; the oldest goes when there are too many."""
        return replace(self, data=(os.urandom(KEY_BYTES), *self.data)[:MASTERS_KEPT])

    def to_bytes(self) -> bytes:
        """The form that a slot seals: the keys one after the other."""
        return b"".join((self.ids, self.meta, self.signing, *self.data))

    @classmethod
    def from_bytes(cls, data: bytes) -> Secrets:
        """The secrets back; IntegrityError when these are not a repository's keys."""
        count, rest = divmod(len(data), KEY_BYTES)
        if rest or not 3 <= count <= 3 + MASTERS_KEPT:
            raise IntegrityError("a key slot does not hold the keys of a repository")
        keys = tuple(data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES))
        return cls(keys[0], keys[1], keys[2], keys[3:])
