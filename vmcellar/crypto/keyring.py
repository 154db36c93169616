"""The open keys of a repository: names, seals, signatures (docs/repository-format.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vmcellar.crypto.base import Buffer, SmallObjects
from vmcellar.crypto.derive import derive
from vmcellar.crypto.epochs import Epochs
from vmcellar.crypto.layout import CHUNK_CONTEXT, NODE_CONTEXT, SIGNING_CONTEXT
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.pack_key import PackKey
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError


class RepositoryKeyring:
    """A Keyring from a repository's secrets, and for a restore in recipient mode from private keys.

    Slots, rotation and paper keys need the secrets themselves, see `slots.unlock_secrets`. Any thread.
    """

    def __init__(self, store: SmallObjects, secrets: Secrets, identities: Iterable[PrivateKey] = ()) -> None:
        self._chunk_key = derive(secrets.ids, CHUNK_CONTEXT)
        self._node_key = derive(secrets.ids, NODE_CONTEXT)
        self._meta = MetaSeal(secrets.meta)
        self._signing = Ed25519PrivateKey.from_private_bytes(derive(secrets.signing, SIGNING_CONTEXT))
        self._checking = self._signing.public_key()
        self.epochs = Epochs(store, self._meta, secrets.data, identities)

    @property
    def epoch_id(self) -> bytes:
        """See Keyring."""
        return self.epochs.current()

    def chunk_id(self, data: Buffer) -> bytes:
        """See Keyring."""
        return blake3(data, key=self._chunk_key).digest()

    def node_id(self, data: Buffer) -> bytes:
        """See Keyring."""
        return blake3(data, key=self._node_key).digest()

    def seal_meta(self, kind: bytes, name: bytes, plain: Buffer) -> bytes:
        """See Keyring and MetaSeal."""
        return self._meta.seal(kind, name, plain)

    def open_meta(self, kind: bytes, name: bytes, sealed: Buffer) -> bytes:
        """See Keyring."""
        return self._meta.open(kind, name, sealed)

    def pack_cipher(self, epoch: bytes, pack: bytes) -> PackKey:
        """See Keyring."""
        return PackKey(self.epochs.key(epoch), pack)

    def sign(self, data: Buffer) -> bytes:
        """See Keyring."""
        return self._signing.sign(bytes(data))

    def check(self, data: Buffer, signature: bytes) -> None:
        """See Keyring."""
        try:
            self._checking.verify(signature, bytes(data))
        except InvalidSignature as error:
            raise IntegrityError("the signature is not this repository's") from error
