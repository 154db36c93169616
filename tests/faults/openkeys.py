"""Keys that seal nothing, so that changed bytes reach the parsers behind the seals."""

from __future__ import annotations

from blake3 import blake3

from vmcellar.errors import IntegrityError

Buffer = bytes | bytearray | memoryview


class OpenKeyring:
    """A Keyring without keys; chunk and node ids are real digests."""

    epoch_id = b"e" * 16

    def chunk_id(self, data: Buffer) -> bytes:
        return blake3(data).digest()

    node_id = chunk_id

    def seal_meta(self, kind: bytes, name: bytes, plain: Buffer) -> bytes:
        del kind, name
        return bytes(plain)

    open_meta = seal_meta

    def pack_cipher(self, epoch: bytes, pack: bytes) -> OpenCipher:
        del epoch, pack
        return OpenCipher()

    def sign(self, data: Buffer) -> bytes:
        del data
        return b"s" * 64

    def check(self, data: Buffer, signature: bytes) -> None:
        del data
        if len(signature) != 64:
            raise IntegrityError("the signature is not this repository's")


class OpenCipher:
    """A PackCipher without a key."""

    def seal(self, ordinal: int, plain: Buffer) -> bytes:
        del ordinal
        return bytes(plain)

    open = seal

    def seal_into(self, ordinal: int, plain: Buffer, out: memoryview) -> None:
        del ordinal
        out[:] = plain

    open_into = seal_into
