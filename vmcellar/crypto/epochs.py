"""Epoch keys: random keys under which data packs are sealed, one for each process that writes.

An epoch key is sealed to every holder, one object each, before the first pack uses it. In recipient mode the host keeps
it in memory only; when the process ends, nothing on the host opens that epoch (docs/repository-format.md, section 4).
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from vmcellar.crypto.base import EpochLockedError, SmallObjects
from vmcellar.crypto.holders import Holder, Identity, Master, Opener, Recipient
from vmcellar.crypto.layout import (
    DOCUMENT_FORMAT,
    EPOCH_BYTES,
    EPOCH_MAGIC,
    EPOCH_SEAL,
    EPOCHS,
    KEY_BYTES,
    epoch_name,
)
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.crypto.recipients import recipients
from vmcellar.errors import IntegrityError, PermanentError, TransientError, VmcellarError

_HEADER = struct.pack("<8sH6x", EPOCH_MAGIC, DOCUMENT_FORMAT)
ATTEMPTS = 5
"""To make an epoch while recipients come and go."""
_COPIES = "every tier and site has a copy of it: put one in its place"


@dataclass(frozen=True, slots=True)
class Shared:
    """What `share` did: epochs that it gave to the holder, and those that it could not open."""

    given: tuple[bytes, ...]
    locked: tuple[bytes, ...]


class Epochs:
    """The epoch keys that one keyring can open. Any thread."""

    def __init__(
        self, store: SmallObjects, meta: MetaSeal, masters: Iterable[bytes], identities: Iterable[PrivateKey] = ()
    ) -> None:
        self._store = store
        self._meta = meta
        masters = tuple(masters)
        self._masters = [Master(key) for key in masters]
        openers: list[Opener] = [*self._masters, *(Identity(key) for key in identities)]
        self._openers = {opener.id: opener for opener in openers}
        self._keys: dict[bytes, bytes] = {}
        self._names: dict[bytes, list[str]] = {}
        self._opening: dict[bytes, threading.Lock] = {}
        self._current: bytes | None = None
        self._lock = threading.RLock()

    def current(self) -> bytes:
        """The epoch of this process, made on first use: durable for every holder before this returns."""
        with self._lock:
            if self._current is None:
                self._current = self._create()
            return self._current

    def key(self, epoch: bytes) -> bytes:
        """The key; EpochLockedError when no key at hand opens it, IntegrityError when it is damaged or missing.

        Read once, however many threads ask for it; those who ask for others wait for nobody.
        """
        with self._lock:
            if epoch in self._keys:
                return self._keys[epoch]
            opening = self._opening.setdefault(epoch, threading.Lock())
        with opening:
            if epoch not in self._keys:
                self._keys[epoch] = self._open(epoch)
            return self._keys[epoch]

    def _create(self) -> bytes:
        """A key for whoever holds keys before *and* after it was given: who came meanwhile, as in a rotation, was not
        given it, and who shares epochs with him may have looked before it was there.
        """
        for _ in range(ATTEMPTS):
            holders = self._holders()
            epoch, key = os.urandom(EPOCH_BYTES), os.urandom(KEY_BYTES)
            for holder in holders.values():
                self.give(epoch, key, holder)
            if self._holders().keys() == holders.keys():
                self._keys[epoch] = key
                return epoch
            for name in holders:  # nothing was sealed under it; where it cannot go it does no harm
                with suppress(VmcellarError):
                    self._store.delete(epoch_name(epoch, name))
        raise TransientError(
            "the recipients change all the time", hint="run the backup again when no `vmcellar key` command runs"
        )

    def _holders(self) -> dict[str, Holder]:
        """Whom an epoch is for, by id; PermanentError when nobody is there."""
        found: list[Holder] = [*self._masters[:1], *(Recipient(key) for key in recipients(self._store, self._meta))]
        if not found:
            raise PermanentError(
                "the repository has no recipient: nobody could restore what would be stored",
                hint="add one: `vmcellar key add --recipient FILE`",
            )
        return {holder.id: holder for holder in found}

    def give(self, epoch: bytes, key: bytes, holder: Holder) -> None:
        """Write the object that seals `key` to `holder`."""
        name = epoch_name(epoch, holder.id)
        sealed = self._meta.seal(EPOCH_SEAL, name.encode(), holder.wrap(name, key))
        self._store.put(name, _HEADER + sealed)

    def _open(self, epoch: bytes) -> bytes:
        with self._lock:
            if epoch not in self._names:
                self._names = by_epoch(self._store)
            holders = self._names.get(epoch, [])
        if not holders:
            raise IntegrityError(f"the key of epoch {epoch.hex()} is missing", hint=_COPIES)
        damage: IntegrityError | None = None
        for holder in holders:
            if holder in self._openers:
                try:
                    return self._read(epoch_name(epoch, holder), self._openers[holder])
                except IntegrityError as error:
                    damage = error
        if damage is not None:
            raise damage
        raise EpochLockedError(
            f"the keys at hand do not open epoch {epoch.hex()}",
            hint=f"give the private key of one of its recipients: {', '.join(holders)}",
        )

    def _read(self, name: str, opener: Opener) -> bytes:
        data = self._store.get(name)
        try:
            key = opener.unwrap(name, check_object(self._meta.open, name, data))
            if len(key) != KEY_BYTES:
                raise IntegrityError("it holds no key")
        except IntegrityError as error:
            raise IntegrityError(f"{name}: {error.message}", hint=_COPIES) from error
        return key


def check_object(open_meta: Callable[[bytes, bytes, bytes], bytes], name: str, data: bytes) -> bytes:
    """What is sealed to the holder, once the object itself is shown to be whole and of this repository; IntegrityError
    when it is not. Needs no holder's key.
    """
    if data[: len(_HEADER)] != _HEADER:
        raise IntegrityError("it does not begin as an epoch key does")
    return open_meta(EPOCH_SEAL, name.encode(), data[len(_HEADER) :])


def by_epoch(store: SmallObjects) -> dict[bytes, list[str]]:
    """The holders of every epoch. Objects with other names are not ours and are passed over."""
    found: dict[bytes, list[str]] = {}
    for name, _ in store.list(EPOCHS):
        epoch, dash, holder = name.removeprefix(EPOCHS).partition("-")
        if dash and len(epoch) == 2 * EPOCH_BYTES and set(epoch) <= set("0123456789abcdef"):
            found.setdefault(bytes.fromhex(epoch), []).append(holder)
    return found


def share(store: SmallObjects, epochs: Epochs, holder: Holder) -> Shared:
    """Seal every epoch key that `epochs` opens to `holder` as well. May be repeated after a crash."""
    given, locked = [], []
    for epoch, holders in by_epoch(store).items():
        if holder.id in holders:
            continue
        try:
            key = epochs.key(epoch)
        except (EpochLockedError, IntegrityError):
            locked.append(epoch)
            continue
        epochs.give(epoch, key, holder)
        given.append(epoch)
    return Shared(tuple(given), tuple(locked))


def drop(store: SmallObjects, gone: Collection[str], kept: Collection[str]) -> None:
    """Remove what is sealed to the holders `gone`, of epochs that one of `kept` holds: no epoch loses its last key."""
    for epoch, holders in by_epoch(store).items():
        if set(kept).intersection(holders):
            for holder in set(gone).difference(kept).intersection(holders):
                store.delete(epoch_name(epoch, holder))
