"""Protection by a passphrase: Argon2id (RFC 9106) gives the key under which AES-256-GCM seals."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from vmcellar.crypto import documents
from vmcellar.crypto.documents import Fields
from vmcellar.crypto.layout import (
    KEY_BYTES,
    LANES_MOST,
    MEMORY_KIB_MOST,
    NONCE_BYTES,
    PASSES_MOST,
    SALT_BYTES,
    SEAL_OVERHEAD,
    WORK_KIB_MOST,
)
from vmcellar.errors import IntegrityError, PermanentError, TransientError


class ShortOfMemoryError(TransientError):
    """There is no memory for a key's derivation; nothing is known of the passphrase."""


@dataclass(frozen=True, slots=True)
class Argon2Cost:
    """What a guess costs. The default is RFC 9106's second choice (section 4), about 0.1 s on a current core."""

    memory_kib: int = 64 << 10
    passes: int = 3
    lanes: int = 4


LIMIT = Argon2Cost(MEMORY_KIB_MOST, PASSES_MOST, LANES_MOST)
"""A document that asks for more, or for more than WORK_KIB_MOST of memory times passes, is refused, so that a forged
one cannot exhaust the host: RFC 9106's first choice (2 GiB, one pass) is let through, and some seconds are the most
that a guess takes.
"""


def protect(secret: bytes, passphrase: bytes, bound: bytes, cost: Argon2Cost | None = None) -> dict[str, str | int]:
    """The fields of a document from which only `passphrase` gets `secret` back; `bound` must be the same then.

    ShortOfMemoryError when there is no memory for it.
    """
    if not passphrase:
        raise PermanentError("the passphrase is empty", hint="put one into the file that holds it")
    cost = cost or Argon2Cost()
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    sealed = nonce + AESGCM(_key_of("the new key", passphrase, salt, cost)).encrypt(nonce, secret, bound)
    return {
        "salt": documents.base64(salt),
        "memory_kib": cost.memory_kib,
        "passes": cost.passes,
        "lanes": cost.lanes,
        "sealed": documents.base64(sealed),
    }


def reveal(name: str, fields: Fields, passphrase: bytes, bound: bytes) -> bytes | None:
    """The secret, None for a wrong passphrase; IntegrityError when the fields are not what `protect` makes,
    ShortOfMemoryError when there is no memory to tell.
    """
    costs = (documents.number(name, fields, key, getattr(LIMIT, key)) for key in ("memory_kib", "passes", "lanes"))
    cost = Argon2Cost(*costs)
    salt, sealed = documents.data_of(name, fields, "salt"), documents.data_of(name, fields, "sealed")
    if len(salt) != SALT_BYTES or len(sealed) < NONCE_BYTES + SEAL_OVERHEAD or cost.memory_kib < 8 * cost.lanes:
        raise IntegrityError(f"{name}: its fields do not fit each other")
    if cost.memory_kib * cost.passes > WORK_KIB_MOST:
        raise IntegrityError(
            f"{name}: it asks for {cost.passes} passes over {cost.memory_kib} KiB, more than is allowed"
        )
    key = _key_of(name, passphrase, salt, cost)
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
    except InvalidTag:
        return None


_one_at_a_time = threading.Lock()
"""OpenSSL's Argon2 takes its lanes from one pool of the process: two derivations beside each other fail ("not enough
memory") or wait for each other for ever.
"""


def _stretch(passphrase: bytes, salt: bytes, cost: Argon2Cost) -> bytes:
    kdf = Argon2id(salt=salt, length=KEY_BYTES, iterations=cost.passes, lanes=cost.lanes, memory_cost=cost.memory_kib)
    with _one_at_a_time:
        return kdf.derive(passphrase)


def _key_of(name: str, passphrase: bytes, salt: bytes, cost: Argon2Cost) -> bytes:
    try:
        return _stretch(passphrase, salt, cost)
    except MemoryError as error:
        raise ShortOfMemoryError(
            f"{name}: its passphrase takes {cost.memory_kib / 1024:.0f} MiB of memory, which this process cannot have",
            hint="end other programs or raise the limit (`ulimit -v`; LimitAS= of a systemd unit), then type it again",
        ) from error
