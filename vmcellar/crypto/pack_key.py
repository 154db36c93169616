"""The cipher of one data pack (docs/repository-format.md, sections 3 and 5)."""

from __future__ import annotations

import threading

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmcellar.crypto.base import Buffer
from vmcellar.crypto.derive import derive
from vmcellar.crypto.layout import NONCE_BYTES, PACK_BOUND, PACK_CONTEXT
from vmcellar.errors import IntegrityError


class PackKey:
    """AES-256-GCM under a key of this pack alone, so that an object's ordinal can be its nonce. Any thread."""

    def __init__(self, epoch_key: bytes, pack: bytes) -> None:
        self._aead = AESGCM(derive(epoch_key, PACK_CONTEXT, pack))
        self._pack = pack
        self._bound = PACK_BOUND + pack
        self._used: set[int] = set()
        self._lock = threading.Lock()

    def seal(self, ordinal: int, plain: Buffer) -> bytes:
        """See PackCipher."""
        return self._aead.encrypt(self._use(ordinal), plain, self._bound)

    def seal_into(self, ordinal: int, plain: Buffer, out: memoryview) -> None:
        """See PackCipher."""
        self._aead.encrypt_into(self._use(ordinal), plain, self._bound, out)

    def open(self, ordinal: int, sealed: Buffer) -> bytes:
        """See PackCipher."""
        try:
            return self._aead.decrypt(_nonce(ordinal), sealed, self._bound)
        except (InvalidTag, ValueError) as error:
            raise self._damaged(ordinal) from error

    def open_into(self, ordinal: int, sealed: Buffer, out: memoryview) -> None:
        """See PackCipher."""
        try:
            self._aead.decrypt_into(_nonce(ordinal), sealed, self._bound, out)
        except (InvalidTag, ValueError) as error:
            raise self._damaged(ordinal) from error

    def _use(self, ordinal: int) -> bytes:
        """The nonce; a second use of one would give both plain texts away, so it is refused."""
        with self._lock:
            if ordinal in self._used:
                raise ValueError(f"ordinal {ordinal} of pack {self._pack.hex()} was sealed before")
            self._used.add(ordinal)
        return _nonce(ordinal)

    def _damaged(self, ordinal: int) -> IntegrityError:
        return IntegrityError(f"pack {self._pack.hex()}: object {ordinal} is damaged or not of this place")


def _nonce(ordinal: int) -> bytes:
    return ordinal.to_bytes(NONCE_BYTES, "little")
