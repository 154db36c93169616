"""A recipient: a key pair whose private half never is on a backup host.

HPKE (RFC 9180) with the hybrid of ML-KEM-768 and X25519, HKDF-SHA256 and AES-256-GCM: what is stored today stays
closed unless both the lattice and the curve are broken. The private key lies in a file of its own under a passphrase.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from vmcellar.crypto import documents, passphrase
from vmcellar.crypto.layout import MLKEM_PUBLIC_BYTES, RECIPIENT_NAME, X25519_BYTES
from vmcellar.crypto.passphrase import Argon2Cost
from vmcellar.errors import IntegrityError, PermanentError

PUBLIC_KIND = "recipient public key"
PRIVATE_KIND = "recipient private key"
_MLKEM_SEED = 64
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Who can be sealed to: 1184 bytes of ML-KEM-768, then 32 of X25519."""

    raw: bytes

    def __post_init__(self) -> None:
        """ValueError unless these are two public keys."""
        if len(self.raw) != MLKEM_PUBLIC_BYTES + X25519_BYTES:
            raise ValueError("a recipient's public key has 1216 bytes")
        self._key()

    @property
    def id(self) -> str:
        """16 hex digits that name the recipient."""
        return sha256(RECIPIENT_NAME + self.raw).hexdigest()[:16]

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """What only the private key opens, under the same context."""
        return _SUITE.encrypt(plain, self._key(), info=context)

    def _key(self) -> MLKEM768X25519PublicKey:
        mlkem = MLKEM768PublicKey.from_public_bytes(self.raw[:MLKEM_PUBLIC_BYTES])
        return MLKEM768X25519PublicKey(mlkem, X25519PublicKey.from_public_bytes(self.raw[MLKEM_PUBLIC_BYTES:]))

    def to_file(self) -> bytes:
        """The public key's file, to be copied to the backup host."""
        return documents.encode(PUBLIC_KIND, {"id": self.id, "public": documents.base64(self.raw)})

    @classmethod
    def from_file(cls, name: str, data: bytes) -> PublicKey:
        """The key in a file; PermanentError when it is another kind of file, IntegrityError when it is damaged."""
        fields = _expect(name, data, PUBLIC_KIND)
        return cls.from_bytes(name, documents.data_of(name, fields, "public"))

    @classmethod
    def from_bytes(cls, name: str, raw: bytes) -> PublicKey:
        """The key; IntegrityError that names where it was found when it is none."""
        try:
            return cls(raw)
        except ValueError as error:
            raise IntegrityError(f"{name}: the public key is not valid") from error


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """Opens what was sealed to its public key: 64 bytes of ML-KEM-768 seed, then 32 of X25519."""

    raw: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key pair."""
        return cls(MLKEM768PrivateKey.generate().private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> PublicKey:
        """The half that backup hosts get."""
        mlkem, x25519 = self._halves()
        return PublicKey(mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw())

    def open(self, sealed: bytes, context: bytes) -> bytes | None:
        """The plain bytes, or None when they were not sealed to this key under this context."""
        try:
            return _SUITE.decrypt(sealed, MLKEM768X25519PrivateKey(*self._halves()), info=context)
        except (InvalidTag, ValueError):
            return None

    def _halves(self) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        mlkem = MLKEM768PrivateKey.from_seed_bytes(self.raw[:_MLKEM_SEED])
        return mlkem, X25519PrivateKey.from_private_bytes(self.raw[_MLKEM_SEED:])

    def to_file(self, secret: bytes, cost: Argon2Cost | None = None) -> bytes:
        """The private key's file, under the passphrase `secret`."""
        key_id = self.public.id
        fields = passphrase.protect(self.raw, secret, _bound(key_id), cost)
        return documents.encode(PRIVATE_KIND, {"id": key_id, **fields})

    @classmethod
    def from_file(cls, name: str, data: bytes, secret: bytes) -> PrivateKey:
        """The key in a file; PermanentError for a wrong passphrase, IntegrityError when the file is damaged."""
        fields = _expect(name, data, PRIVATE_KIND)
        raw = passphrase.reveal(name, fields, secret, _bound(documents.text(name, fields, "id")))
        if raw is None:
            raise PermanentError(
                f"{name} does not open with this passphrase", hint="try the passphrase it was made with"
            )
        return cls.from_bytes(name, raw)

    @classmethod
    def from_bytes(cls, name: str, raw: bytes) -> PrivateKey:
        """The key; IntegrityError that names where it was found when it is none."""
        if len(raw) != _MLKEM_SEED + X25519_BYTES:
            raise IntegrityError(f"{name} does not hold a recipient's private key")
        return cls(raw)


def _bound(key_id: str) -> bytes:
    return f"vmcellar private key 1 {key_id}".encode()


def _expect(name: str, data: bytes, kind: str) -> documents.Fields:
    found, fields = documents.decode(name, data)
    if found != kind:
        raise PermanentError(f"{name} holds a {found or 'nameless thing'}, not a {kind}", hint="name the other file")
    return cast("documents.Fields", fields)
