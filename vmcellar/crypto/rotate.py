"""Rotation: new keys for what comes, re-wrapped keys for what is there. No pack is read or written.

Every order below is safe to crash in: new objects first, then the slot that opens them, then the old ones go, and an
epoch key is only taken from one holder while another has it. Repeating the call finishes it. A host that runs meanwhile
goes on with the keys it opened: keep an old private key until all have been restarted and a second rotation is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmcellar.crypto import recipients, slots
from vmcellar.crypto.base import SmallObjects
from vmcellar.crypto.epochs import Epochs, by_epoch, drop, share
from vmcellar.crypto.holders import Master, Recipient
from vmcellar.crypto.layout import KEYS, MASTERS_KEPT
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.passphrase import Argon2Cost
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError, PermanentError


@dataclass(frozen=True, slots=True)
class Rotation:
    """What was done: the new slot, the slots that are gone, how many epochs were re-wrapped, and which could not be."""

    slot: str
    removed: tuple[str, ...]
    rewrapped: int
    locked: tuple[bytes, ...]


def rotate_passphrase(
    store: SmallObjects, secret: bytes, new_secret: bytes, cost: Argon2Cost | None = None, *, label: str = ""
) -> Rotation:
    """A new passphrase and, unless in recipient mode, a new data master to which all epoch keys are re-wrapped.

    All other passphrase slots go too: their data master is the old one. Recipients stay. An epoch key that does not
    open keeps the old slots, as one of them may hold what opens it.
    """
    secrets = slots.unlock_secrets(store, secret)
    others = [public.id for public in recipients.recipients(store, MetaSeal(secrets.meta))]
    old = [info.id for info in slots.list_slots(store) if info.kind in (slots.PASSPHRASE, slots.HOST)]
    slot, secrets = _begun(store, old, secrets, new_secret) or (None, _renewed(secrets))
    epochs = Epochs(store, MetaSeal(secrets.meta), secrets.data)
    masters = [Master(key) for key in secrets.data]
    shared = share(store, epochs, masters[0]) if masters else None
    if slot is None:
        slot = slots.add_passphrase(store, secrets, new_secret, cost, label=label)
        if slots.open_slot(store, slot, new_secret) != secrets:
            raise IntegrityError(f"the new key slot {slot} does not read back; the old ones are untouched")
    if shared and shared.locked:
        return Rotation(slot, (), len(shared.given), shared.locked)
    gone = [name for name in old if name != slot]
    for name in gone:
        store.delete(KEYS + name)
    if masters:  # whoever else holds epoch keys is an old master, or was a recipient
        strangers = {holder for holders in by_epoch(store).values() for holder in holders}.difference(others)
        drop(store, strangers, [masters[0].id])
    return Rotation(slot, tuple(gone), len(shared.given) if shared else 0, ())


def _renewed(secrets: Secrets) -> Secrets:
    return secrets.with_new_master() if secrets.data else secrets


def _begun(store: SmallObjects, present: Sequence[str], old: Secrets, new_secret: bytes) -> tuple[str, Secrets] | None:
    """The slot that an earlier call made before it died, and what it holds.

    Another new master instead would take the first one's only slot away, and with it what hosts have sealed since.
    """
    for slot in present:
        try:
            found = slots.open_slot(store, slot, new_secret)
        except (IntegrityError, PermanentError):
            continue
        if found is not None and found.data[1:] == old.data[: MASTERS_KEPT - 1] and found.data != old.data:
            return slot, found
    return None


def rotate_recipient(store: SmallObjects, old: PrivateKey, new: PublicKey, *, label: str = "") -> Rotation:
    """Give everything that `old` opens to `new`, and take the slot and the epoch keys from `old`."""
    present = {info.id for info in slots.list_slots(store)}
    left = any(old.public.id in holders for holders in by_epoch(store).values())
    if new.id in present and old.public.id not in present and left:  # an earlier call died in its last step
        drop(store, [old.public.id], [new.id])
        return Rotation(new.id, (), 0, _only_for(store, old.public.id))
    secrets = recipients.unlock_secrets(store, old)
    if new.id not in present:
        recipients.add_recipient(store, secrets, new, label)
    epochs = Epochs(store, MetaSeal(secrets.meta), (), [old])
    shared = share(store, epochs, Recipient(new))
    if shared.locked:
        return Rotation(new.id, (), len(shared.given), shared.locked)
    store.delete(KEYS + old.public.id)
    drop(store, [old.public.id], [new.id])
    return Rotation(new.id, (old.public.id,), len(shared.given), ())


def _only_for(store: SmallObjects, holder: str) -> tuple[bytes, ...]:
    """The epochs that nobody else holds."""
    return tuple(epoch for epoch, holders in by_epoch(store).items() if holders == [holder])
