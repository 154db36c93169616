"""Key slots: small objects under `keys/`, each of which gives the repository's secrets to whoever knows its passphrase
or has its private key (docs/repository-format.md, section 4).

Adding, removing and changing a passphrase writes and deletes slots; no pack is touched.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from vmcellar.crypto import documents, passphrase, recipients
from vmcellar.crypto.base import SmallObjects
from vmcellar.crypto.documents import Fields
from vmcellar.crypto.epochs import by_epoch, drop
from vmcellar.crypto.keyring import RepositoryKeyring
from vmcellar.crypto.layout import HOST_KIND, KEYS, PASSPHRASE_KIND, RECIPIENT_KIND
from vmcellar.crypto.passphrase import Argon2Cost, ShortOfMemoryError
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError, PermanentError, VmcellarError

PASSPHRASE = PASSPHRASE_KIND
HOST = HOST_KIND
"""A passphrase slot without data masters: a backup host's, in recipient mode."""
RECIPIENT = RECIPIENT_KIND


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """What anybody can see of a slot. `kind` is passphrase, host, recipient, damaged, or newer (of a newer format)."""

    id: str
    kind: str
    label: str = ""
    created: str = ""


def create(store: SmallObjects, secret: bytes, to: Sequence[PublicKey] = ()) -> Secrets:
    """The keys of a new repository: one passphrase slot; in recipient mode a host slot and one for each recipient.

    May be repeated after a crash: it goes on with the slots it finds.
    """
    if any(store.list(KEYS)):
        secrets = unlock_secrets(store, secret)
    else:
        secrets = Secrets.random(data=not to)
        add_passphrase(store, secrets, secret)
    known = {slot.id for slot in list_slots(store)}
    for public in to:
        if public.id not in known:
            recipients.add_recipient(store, secrets, public)
    return secrets


def add_passphrase(
    store: SmallObjects, secrets: Secrets, secret: bytes, cost: Argon2Cost | None = None, *, label: str = ""
) -> str:
    """Write a new slot that the passphrase (or the bytes of a key file) `secret` opens, and return its id."""
    slot = os.urandom(16).hex()
    kind = PASSPHRASE if secrets.data else HOST
    shown = {"label": label, "created": documents.now()}
    fields = passphrase.protect(secrets.to_bytes(), secret, _bound(slot, kind, shown), cost)
    store.put(KEYS + slot, documents.encode(kind, {**shown, **fields}))
    return slot


def unlock(store: SmallObjects, secret: bytes) -> RepositoryKeyring:
    """The open keyring; PermanentError, the same for every reason, when no slot opens with this passphrase."""
    return RepositoryKeyring(store, unlock_secrets(store, secret))


def unlock_private(store: SmallObjects, private: PrivateKey) -> RepositoryKeyring:
    """The keyring of a recipient: opens everything that was sealed to it; needs no passphrase of a backup host."""
    return RepositoryKeyring(store, recipients.unlock_secrets(store, private), [private])


def unlock_secrets(store: SmallObjects, secret: bytes) -> Secrets:
    """The secrets themselves, to put them into another slot.

    A slot that is damaged, of a newer version, or takes more memory than there is, is passed over when another opens;
    its error when there is no other. ShortOfMemoryError when none opens and one could not be tried for that.
    """
    unusable: list[VmcellarError] = []
    tried = 0
    for name, _ in store.list(KEYS):
        try:
            kind, fields = documents.decode(name, store.get(name))
            if kind == RECIPIENT:
                continue
            tried += 1
            found = _open(name, kind, fields, secret)
        except (IntegrityError, PermanentError, ShortOfMemoryError) as error:
            unusable.append(error)
            continue
        if found is not None:
            return found
    untried = [error for error in unusable if isinstance(error, ShortOfMemoryError)]
    if untried:
        raise untried[0]
    if unusable and not tried:
        raise unusable[0]
    raise _refused(unusable)


def open_slot(store: SmallObjects, slot: str, secret: bytes) -> Secrets | None:
    """What this passphrase slot holds, None for another passphrase; IntegrityError when it is damaged."""
    name = KEYS + slot
    return _open(name, *documents.decode(name, store.get(name)), secret)


def _open(name: str, kind: str, fields: Fields, secret: bytes) -> Secrets | None:
    if kind not in (PASSPHRASE, HOST):
        raise IntegrityError(f"{name} is a slot of an unknown kind", hint="use a newer vmcellar")
    shown = {key: documents.text(name, fields, key) for key in ("label", "created")}
    plain = passphrase.reveal(name, fields, secret, _bound(name.removeprefix(KEYS), kind, shown))
    return None if plain is None else Secrets.from_bytes(plain)


def _refused(unusable: Sequence[VmcellarError]) -> PermanentError:
    note = f" ({len(unusable)} slots cannot be used: {unusable[0].message})" if unusable else ""
    return PermanentError(
        f"no key slot of the repository opens with this passphrase{note}",
        hint="check the file or variable that `key:` in vmcellar.yaml names; `vmcellar key list` shows the slots",
    )


def list_slots(store: SmallObjects) -> list[SlotInfo]:
    """All slots; needs no passphrase. What it shows of a slot is only proven once the slot is opened."""
    return [_info(name, store.get(name)) for name, _ in store.list(KEYS)]


def _info(name: str, data: bytes) -> SlotInfo:
    slot = name.removeprefix(KEYS)
    try:
        kind, fields = documents.decode(name, data)
    except IntegrityError:
        return SlotInfo(slot, "damaged")
    except PermanentError:
        return SlotInfo(slot, "newer")
    return SlotInfo(slot, kind, str(fields.get("label", "")), str(fields.get("created", "")))


def remove(store: SmallObjects, slot: str, *, force: bool = False) -> None:
    """Delete a slot; PermanentError when there is none, when it is the last that reads disks, or, without `force`, when
    backups are sealed to it alone.

    What is sealed to a recipient goes as well, where another recipient has it; a rotation takes the rest.
    """
    found = list_slots(store)
    if slot not in {info.id for info in found}:
        meant = [info.id for info in found if slot and info.id.startswith(slot)]
        hint = f"name it in full: {' or '.join(meant)}" if meant else "`vmcellar key list` shows the slots"
        raise PermanentError(f"the repository has no key slot {slot}", hint=hint)
    if not any(info.id != slot and info.kind in (PASSPHRASE, RECIPIENT) for info in found):
        raise PermanentError(f"{slot} is the last key that opens the repository", hint="add another one first")
    alone = _sealed_to_it_alone(store, found, slot)
    if alone and not force:
        raise PermanentError(
            f"{len(alone)} epoch keys are sealed to {slot} alone: nobody could read what was backed up under them",
            hint="give them to another key first: `vmcellar key rotate --recipient NEW.pub --identity OLD.key`; "
            "or repeat with --force",
        )
    store.delete(KEYS + slot)
    drop(store, [slot], [info.id for info in found if info.id != slot and info.kind == RECIPIENT])


def _sealed_to_it_alone(store: SmallObjects, found: Sequence[SlotInfo], slot: str) -> list[bytes]:
    """The epochs that no other slot opens, as far as names tell: masters are of passphrases, all else of recipients."""
    kind = next(info.kind for info in found if info.id == slot)
    recipients = {info.id for info in found if info.kind == RECIPIENT}
    passphrases = any(info.id != slot and info.kind == PASSPHRASE for info in found)
    alone = []
    for epoch, holders in by_epoch(store).items():
        masters = set(holders) - recipients
        opened = slot in holders if kind == RECIPIENT else kind == PASSPHRASE and bool(masters)
        if opened and not (recipients - {slot}).intersection(holders) and not (passphrases and masters):
            alone.append(epoch)
    return alone


def _bound(slot: str, kind: str, shown: Fields) -> bytes:
    """What a slot shows in clear is sealed with it, so that nobody can change it unseen."""
    return documents.encode(kind, {"slot": slot, **shown})
