"""How metadata is sealed: AES-256-GCM, one key per object (docs/repository-format.md, section 3)."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmcellar.crypto.base import Buffer
from vmcellar.crypto.derive import derive
from vmcellar.crypto.layout import META_CONTEXT, NONCE_BYTES
from vmcellar.errors import IntegrityError


class MetaSeal:
    """Seals and opens objects under their kind and name. Any thread."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, kind: bytes, name: bytes, plain: Buffer) -> bytes:
        """Nonce, then ciphertext, then tag.

        Each (kind, name) has its own key, and names are used once, so the random nonce never comes near its limit of
        2^32 uses under one key; it is there for the rare name that is sealed again, after a crash.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead(kind, name).encrypt(nonce, plain, kind)

    def open(self, kind: bytes, name: bytes, sealed: Buffer) -> bytes:
        """The plain form; IntegrityError when it is not what was sealed under that kind and name."""
        try:
            return self._aead(kind, name).decrypt(bytes(sealed[:NONCE_BYTES]), sealed[NONCE_BYTES:], kind)
        except (InvalidTag, ValueError) as error:
            what = f"{kind.decode('ascii', 'backslashreplace')} {_shown(name)}"
            raise IntegrityError(f"{what}: the object is damaged or not of this place") from error

    def _aead(self, kind: bytes, name: bytes) -> AESGCM:
        return AESGCM(derive(self._key, META_CONTEXT + kind, name))


def _shown(name: bytes) -> str:
    """Points and epochs have names of text, packs of random bytes."""
    return name.decode() if name.isascii() and name.decode().isprintable() else name.hex()
