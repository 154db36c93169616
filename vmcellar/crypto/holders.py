"""Who can be given an epoch key: the data master (passphrase mode) or a recipient."""

from __future__ import annotations

from typing import Protocol

from vmcellar.crypto.derive import derive
from vmcellar.crypto.layout import EPOCH_INFO, HOLDER_BYTES, HOLDER_CONTEXT, MASTER_SEAL, WRAP_CONTEXT
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.errors import IntegrityError


class Holder(Protocol):
    """Somebody to whom epoch keys are sealed."""

    @property
    def id(self) -> str:
        """16 hex digits, part of the names of the objects that are sealed to it."""
        ...

    def wrap(self, name: str, key: bytes) -> bytes:
        """`key`, sealed to this holder under the object's name."""
        ...


class Opener(Protocol):
    """Somebody who opens what was sealed to the holder of the same id."""

    @property
    def id(self) -> str:
        """See Holder."""
        ...

    def unwrap(self, name: str, wrapped: bytes) -> bytes:
        """The key; IntegrityError that names the object when it was not sealed so."""
        ...


class Master:
    """A data master: Holder and Opener."""

    def __init__(self, key: bytes) -> None:
        self.id = derive(key, HOLDER_CONTEXT)[:HOLDER_BYTES].hex()
        self._seal = MetaSeal(derive(key, WRAP_CONTEXT))

    def wrap(self, name: str, key: bytes) -> bytes:
        """See Holder."""
        return self._seal.seal(MASTER_SEAL, name.encode(), key)

    def unwrap(self, name: str, wrapped: bytes) -> bytes:
        """See Opener."""
        return self._seal.open(MASTER_SEAL, name.encode(), wrapped)


class Recipient:
    """A recipient's public key as a Holder."""

    def __init__(self, public: PublicKey) -> None:
        self.id = public.id
        self._public = public

    def wrap(self, name: str, key: bytes) -> bytes:
        """See Holder."""
        return self._public.seal(key, _context(name))


class Identity:
    """A recipient's private key as an Opener."""

    def __init__(self, private: PrivateKey) -> None:
        self.id = private.public.id
        self._private = private

    def unwrap(self, name: str, wrapped: bytes) -> bytes:
        """See Opener."""
        key = self._private.open(wrapped, _context(name))
        if key is None:
            raise IntegrityError(f"{name} does not open with the private key that it is sealed to")
        return key


def _context(name: str) -> bytes:
    return EPOCH_INFO + name.encode()
