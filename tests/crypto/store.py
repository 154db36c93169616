"""Where the tests keep key objects: memory with a tier's rules, and one that dies at a chosen step."""

from __future__ import annotations

from collections.abc import Iterator

from vmcellar.crypto import slots
from vmcellar.crypto.keyring import RepositoryKeyring
from vmcellar.crypto.passphrase import Argon2Cost
from vmcellar.crypto.recipient import PublicKey
from vmcellar.crypto.recipients import add_recipient
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import PermanentError

CHEAP = Argon2Cost(memory_kib=8, passes=1, lanes=1)
WORD = b"correct horse"


class MemoryStore:
    """Named objects that are never overwritten."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})

    def get(self, key: str) -> bytes:
        return self.objects[key]

    def put(self, key: str, data: bytes) -> None:
        if key in self.objects:
            raise PermanentError(f"{key} exists")
        self.objects[key] = data

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield key, len(self.objects[key])

    def delete(self, key: str) -> None:
        del self.objects[key]

    def only(self, prefix: str) -> str:
        """The one key with this prefix."""
        (key,) = (key for key, _ in self.list(prefix))
        return key


class Crash(BaseException):
    """The process died here."""


class CrashingStore(MemoryStore):
    """Dies before the `steps`-th change, and lets nothing be changed any more."""

    def __init__(self, objects: dict[str, bytes], steps: int) -> None:
        super().__init__(objects)
        self.steps = steps

    def _step(self) -> None:
        if self.steps == 0:
            raise Crash
        self.steps -= 1

    def put(self, key: str, data: bytes) -> None:
        self._step()
        super().put(key, data)

    def delete(self, key: str) -> None:
        self._step()
        super().delete(key)


def passphrase_mode(store: MemoryStore) -> Secrets:
    """A repository's keys under WORD, made with a cheap cost."""
    secrets = Secrets.random()
    slots.add_passphrase(store, secrets, WORD, CHEAP)
    return secrets


def recipient_mode(store: MemoryStore, *to: PublicKey) -> Secrets:
    """A host slot under WORD and a slot for each recipient."""
    secrets = Secrets.random(data=False)
    slots.add_passphrase(store, secrets, WORD, CHEAP)
    for public in to:
        add_recipient(store, secrets, public)
    return secrets


def seal_pack(keyring: RepositoryKeyring, plain: bytes = b"disk bytes") -> tuple[bytes, bytes, bytes]:
    """(epoch, pack, sealed): one object of a data pack."""
    pack = b"p" * 16
    return keyring.epoch_id, pack, keyring.pack_cipher(keyring.epoch_id, pack).seal(0, plain)


def flips(data: bytes) -> Iterator[bytes]:
    """`data` with one bit flipped: every bit of short data, one bit of every byte of long data."""
    bits = range(8 * len(data)) if len(data) <= 1024 else (8 * i + i % 8 for i in range(len(data)))
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)
