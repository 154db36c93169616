"""The open keys of a repository: names, seals, signatures (docs/repository-format.md, section 7)."""

from __future__ import annotations

import os
import threading

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmcellar.crypto.base import Buffer
from vmcellar.crypto.derive import derive
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError

NONCE_BYTES = 12
EPOCH_BYTES = 16
_DATA_CONTEXT = b"vmcellar data pack 1"


class PackKey:
    """The cipher of one data pack: a key of its own, so that the ordinal can be the nonce."""

    def __init__(self, key: bytes, pack: bytes) -> None:
        self._aead = AESGCM(key)
        self._pack = pack
        self._used: set[int] = set()
        self._lock = threading.Lock()

    def seal(self, ordinal: int, plain: Buffer) -> bytes:
        """See PackCipher; a second use of an ordinal would give both plain texts away, so it is refused."""
        with self._lock:
            if ordinal in self._used:
                raise ValueError(f"ordinal {ordinal} of pack {self._pack.hex()} was sealed before")
            self._used.add(ordinal)
        return self._aead.encrypt(_nonce(ordinal), plain, _DATA_CONTEXT + self._pack)

    def open(self, ordinal: int, sealed: Buffer) -> bytes:
        """See PackCipher."""
        try:
            return self._aead.decrypt(_nonce(ordinal), sealed, _DATA_CONTEXT + self._pack)
        except (InvalidTag, ValueError) as error:
            raise IntegrityError(f"pack {self._pack.hex()}: object {ordinal} is damaged") from error


class MasterKeyring:
    """A keyring that can do everything: it holds the repository's four secrets."""

    def __init__(self, secrets: Secrets) -> None:
        self._chunk_key = derive(secrets.ids, b"chunk id")
        self._node_key = derive(secrets.ids, b"node id")
        self._meta = secrets.meta
        self._data = secrets.data
        self._signing = Ed25519PrivateKey.from_private_bytes(derive(secrets.signing, b"signing"))
        self._epoch = os.urandom(EPOCH_BYTES)

    @property
    def epoch_id(self) -> bytes:
        """A new epoch for each opening of the repository."""
        return self._epoch

    def chunk_id(self, data: Buffer) -> bytes:
        """See Keyring."""
        return blake3(data, key=self._chunk_key).digest()

    def node_id(self, data: Buffer) -> bytes:
        """See Keyring."""
        return blake3(data, key=self._node_key).digest()

    def seal_meta(self, kind: bytes, name: bytes, plain: Buffer) -> bytes:
        """See Keyring. Each (kind, name) has its own key; the nonce is random, for the rare name that is sealed
        twice.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._meta_aead(kind, name).encrypt(nonce, plain, kind)

    def open_meta(self, kind: bytes, name: bytes, sealed: Buffer) -> bytes:
        """See Keyring."""
        try:
            return self._meta_aead(kind, name).decrypt(bytes(sealed[:NONCE_BYTES]), sealed[NONCE_BYTES:], kind)
        except (InvalidTag, ValueError) as error:
            raise IntegrityError(f"{kind.decode()} {name.hex()}: the object is damaged or not of this place") from error

    def pack_cipher(self, epoch: bytes, pack: bytes) -> PackKey:
        """See Keyring."""
        return PackKey(derive(derive(self._data, b"epoch", epoch), b"pack", pack), pack)

    def sign(self, data: Buffer) -> bytes:
        """See Keyring."""
        return self._signing.sign(bytes(data))

    def check(self, data: Buffer, signature: bytes) -> None:
        """See Keyring."""
        try:
            self._signing.public_key().verify(signature, bytes(data))
        except InvalidSignature as error:
            raise IntegrityError("the signature is not this repository's") from error

    def _meta_aead(self, kind: bytes, name: bytes) -> AESGCM:
        return AESGCM(derive(self._meta, b"meta " + kind, name))


def _nonce(ordinal: int) -> bytes:
    return ordinal.to_bytes(NONCE_BYTES, "little")
