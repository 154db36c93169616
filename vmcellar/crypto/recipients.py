"""Recipient slots: to whom epoch keys are sealed (docs/repository-format.md, section 4).

Each also holds the metadata secrets, sealed to the recipient, so that the private key alone restores when every backup
host is lost. A proof under the metadata key keeps a thief of the storage from adding a recipient of his own.
"""

from __future__ import annotations

from hashlib import sha256

from vmcellar.crypto import documents
from vmcellar.crypto.base import SmallObjects
from vmcellar.crypto.documents import Fields
from vmcellar.crypto.layout import KEYS, RECIPIENT_KIND, RECIPIENT_SEAL, SECRETS_INFO
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError, PermanentError

_HINT = "`vmcellar key list` shows the slots; do not back up before you know who made this one"


def add_recipient(store: SmallObjects, secrets: Secrets, public: PublicKey, label: str = "") -> str:
    """Write the slot and return its id; later epochs are sealed to it, `epochs.share` adds the earlier ones."""
    name = KEYS + public.id
    fields: dict[str, str | int] = {
        "label": label,
        "created": documents.now(),
        "public": documents.base64(public.raw),
        "secrets": documents.base64(public.seal(secrets.metadata_only().to_bytes(), _context(name))),
    }
    proof = MetaSeal(secrets.meta).seal(RECIPIENT_SEAL, name.encode(), _digest(fields))
    store.put(name, documents.encode(RECIPIENT_KIND, {**fields, "proof": documents.base64(proof)}))
    return public.id


def recipients(store: SmallObjects, meta: MetaSeal) -> list[PublicKey]:
    """All recipients; IntegrityError names a slot that is damaged or was not made with this repository's keys.

    One damaged slot stops it: without it data would be stored that this recipient could not restore.
    """
    found = []
    for name, _ in store.list(KEYS):
        kind, fields = documents.decode(name, store.get(name))
        if kind == RECIPIENT_KIND:
            found.append(_checked(name, fields, meta))
    return found


def unlock_secrets(store: SmallObjects, private: PrivateKey) -> Secrets:
    """The metadata secrets; PermanentError when no slot is for this private key."""
    name = KEYS + private.public.id
    if name not in {key for key, _ in store.list(KEYS)}:
        raise PermanentError(
            f"the repository has no slot for recipient {private.public.id}",
            hint="`vmcellar key list` shows whose private keys open it",
        )
    kind, fields = documents.decode(name, store.get(name))
    plain = private.open(documents.data_of(name, fields, "secrets"), _context(name)) if kind == RECIPIENT_KIND else None
    if plain is None:
        raise IntegrityError(f"{name} is damaged: it does not open with its own private key", hint=_HINT)
    secrets = Secrets.from_bytes(plain)
    _checked(name, fields, MetaSeal(secrets.meta))
    return secrets


def _checked(name: str, fields: Fields, meta: MetaSeal) -> PublicKey:
    public = PublicKey.from_bytes(name, documents.data_of(name, fields, "public"))
    proven = {key: value for key, value in fields.items() if key != "proof"}
    try:
        digest = meta.open(RECIPIENT_SEAL, name.encode(), documents.data_of(name, fields, "proof"))
    except IntegrityError as error:
        raise IntegrityError(f"{name} was not made with this repository's keys", hint=_HINT) from error
    if digest != _digest(proven):
        raise IntegrityError(f"{name} was changed after it was made", hint=_HINT)
    return public


def _digest(fields: Fields) -> bytes:
    return sha256(documents.encode(RECIPIENT_KIND, fields)).digest()


def _context(name: str) -> bytes:
    return SECRETS_INFO + name.encode()
