"""A keyring with fixed keys and no key slots: the real ciphers, so that damage is found as it would be."""

from __future__ import annotations

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmcellar.errors import IntegrityError

Buffer = bytes | bytearray | memoryview


class FixedCipher:
    """One pack's cipher."""

    def __init__(self, key: bytes, pack: bytes) -> None:
        self._aead = AESGCM(blake3(pack, key=key).digest())
        self._pack = pack

    def seal(self, ordinal: int, plain: Buffer) -> bytes:
        return self._aead.encrypt(ordinal.to_bytes(12, "little"), plain, self._pack)

    def seal_into(self, ordinal: int, plain: Buffer, out: memoryview) -> None:
        self._aead.encrypt_into(ordinal.to_bytes(12, "little"), plain, self._pack, out)

    def open_into(self, ordinal: int, sealed: Buffer, out: memoryview) -> None:
        out[:] = self.open(ordinal, sealed)

    def open(self, ordinal: int, sealed: Buffer) -> bytes:
        try:
            return self._aead.decrypt(ordinal.to_bytes(12, "little"), sealed, self._pack)
        except InvalidTag as error:
            raise IntegrityError("it does not decrypt") from error


class FixedKeyring:
    """A Keyring whose keys are all derived from `seed`."""

    def __init__(self, seed: bytes = b"seed", epoch: bytes = b"e" * 16) -> None:
        self._key = blake3(seed).digest()
        self.epoch_id = epoch

    def chunk_id(self, data: Buffer) -> bytes:
        return blake3(data, key=self._key).digest()

    def node_id(self, data: Buffer) -> bytes:
        return blake3(b"node" + bytes(data), key=self._key).digest()

    def seal_meta(self, kind: bytes, name: bytes, plain: Buffer) -> bytes:
        return FixedCipher(self._key, kind + b"/" + name).seal(0, plain)

    def open_meta(self, kind: bytes, name: bytes, sealed: Buffer) -> bytes:
        return FixedCipher(self._key, kind + b"/" + name).open(0, sealed)

    def pack_cipher(self, epoch: bytes, pack: bytes) -> FixedCipher:
        return FixedCipher(self._key, epoch + pack)

    def sign(self, data: Buffer) -> bytes:
        return blake3(b"sign" + bytes(data), key=self._key).digest(64)

    def check(self, data: Buffer, signature: bytes) -> None:
        if self.sign(data) != signature:
            raise IntegrityError("the signature is not this repository's")
