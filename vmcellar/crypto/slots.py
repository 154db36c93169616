"""Key slots: small JSON objects under `keys/`, each of which gives the repository's secrets to whoever knows its
passphrase.

Adding, removing and changing a passphrase writes and deletes slots; no pack is touched.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from vmcellar.crypto.base import SmallObjects
from vmcellar.crypto.derive import KEY_BYTES
from vmcellar.crypto.keyring import NONCE_BYTES, MasterKeyring
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError, PermanentError

KEYS = "keys/"
SLOT_FORMAT = 1
_FIELDS = {"format", "kind", "salt", "memory_kib", "passes", "lanes", "sealed"}


@dataclass(frozen=True, slots=True)
class Argon2Cost:
    """What a guess costs. The default is the second choice of RFC 9106, section 4: 64 MiB, three passes, four
    lanes.
    """

    memory_kib: int = 64 << 10
    passes: int = 3
    lanes: int = 4


LIMIT = Argon2Cost(memory_kib=4 << 20, passes=64, lanes=64)
"""A slot that asks for more is refused, so that a forged one cannot exhaust the host."""


def add_passphrase(store: SmallObjects, secrets: Secrets, passphrase: bytes, cost: Argon2Cost | None = None) -> str:
    """Write a new slot and return its id."""
    if not passphrase:
        raise PermanentError("the passphrase is empty", hint="put one into the file that key: names")
    cost = cost or Argon2Cost()
    slot = os.urandom(16).hex()
    salt = os.urandom(16)
    nonce = os.urandom(NONCE_BYTES)
    key = _stretch(passphrase, salt, cost)
    sealed = nonce + AESGCM(key).encrypt(nonce, secrets.to_bytes(), slot.encode())
    document = {
        "format": SLOT_FORMAT,
        "kind": "passphrase",
        "salt": b64encode(salt).decode(),
        "memory_kib": cost.memory_kib,
        "passes": cost.passes,
        "lanes": cost.lanes,
        "sealed": b64encode(sealed).decode(),
    }
    store.put(KEYS + slot, json.dumps(document, indent=1).encode())
    return slot


def unlock(store: SmallObjects, passphrase: bytes) -> MasterKeyring:
    """The open keyring; PermanentError, the same for every reason, when no slot opens with this passphrase."""
    return MasterKeyring(unlock_secrets(store, passphrase))


def unlock_secrets(store: SmallObjects, passphrase: bytes) -> Secrets:
    """The secrets themselves, to put them into another slot."""
    damaged: list[str] = []
    for name, _ in store.list(KEYS):
        try:
            secrets = _open(name, store.get(name), passphrase)
        except IntegrityError:
            damaged.append(name)
            continue
        if secrets is not None:
            return secrets
    note = f" ({len(damaged)} damaged slots were passed over: {', '.join(damaged)})" if damaged else ""
    raise PermanentError(
        f"no key slot of the repository opens with this passphrase{note}",
        hint="check the file or variable that `key:` in vmcellar.yaml names; `vmcellar key list` shows the slots",
    )


def _open(name: str, data: bytes, passphrase: bytes) -> Secrets | None:
    salt, cost, sealed = _parse(name, data)
    key = _stretch(passphrase, salt, cost)
    try:
        plain = AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.removeprefix(KEYS).encode())
    except InvalidTag:
        return None
    return Secrets.from_bytes(plain)


def _parse(name: str, data: bytes) -> tuple[bytes, Argon2Cost, bytes]:
    try:
        document = json.loads(data)
        if set(document) != _FIELDS or document["format"] != SLOT_FORMAT or document["kind"] != "passphrase":
            raise ValueError("unknown fields")
        cost = Argon2Cost(*(_bounded(document[k], getattr(LIMIT, k)) for k in ("memory_kib", "passes", "lanes")))
        salt, sealed = (b64decode(document[k], validate=True) for k in ("salt", "sealed"))
        if len(salt) != 16 or len(sealed) <= NONCE_BYTES + 16 or cost.memory_kib < 8 * cost.lanes:
            raise ValueError("wrong lengths")
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"key slot {name} is damaged: {error}", hint="`vmcellar key list`") from error
    return salt, cost, sealed


def _bounded(value: object, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise ValueError(f"cost {value!r} out of bounds")
    return value


def _stretch(passphrase: bytes, salt: bytes, cost: Argon2Cost) -> bytes:
    kdf = Argon2id(salt=salt, length=KEY_BYTES, iterations=cost.passes, lanes=cost.lanes, memory_cost=cost.memory_kib)
    return kdf.derive(passphrase)
