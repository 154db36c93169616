"""Rotation re-wraps and never loses: also when it dies at any step, also beside a host that runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.crypto.store import (
    CHEAP,
    WORD,
    Crash,
    CrashingStore,
    MemoryStore,
    passphrase_mode,
    recipient_mode,
    seal_pack,
)
from vmcellar.crypto import slots
from vmcellar.crypto.base import EpochLockedError
from vmcellar.crypto.epochs import Epochs, by_epoch, share
from vmcellar.crypto.holders import Identity, Recipient
from vmcellar.crypto.keyring import RepositoryKeyring
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.crypto.recipients import add_recipient
from vmcellar.crypto.rotate import rotate_passphrase, rotate_recipient
from vmcellar.errors import IntegrityError, PermanentError, TransientError

NEW = b"battery staple"
Written = list[tuple[bytes, bytes, bytes]]


def runs(store: MemoryStore, count: int = 3) -> Written:
    return [seal_pack(slots.unlock(store, WORD)) for _ in range(count)]


def reads(keyring: RepositoryKeyring, written: Written) -> bool:
    return all(keyring.pack_cipher(epoch, pack).open(0, sealed) == b"disk bytes" for epoch, pack, sealed in written)


def crashes(store: MemoryStore) -> Iterator[CrashingStore]:
    """The same objects again and again, with a death before the first change, the second, and so on."""
    steps = 0
    while True:
        yield CrashingStore(store.objects, steps)
        steps += 1


def test_a_new_passphrase_and_master_read_everything() -> None:
    store = MemoryStore()
    before = passphrase_mode(store)
    slots.add_passphrase(store, before, b"colleague", CHEAP)
    written = runs(store)
    names = by_epoch(store)
    done = rotate_passphrase(store, WORD, NEW, CHEAP, label="2026")
    assert (done.rewrapped, done.locked, len(done.removed)) == (3, (), 2)
    assert reads(slots.unlock(store, NEW), written)
    for word in (WORD, b"colleague"):
        with pytest.raises(PermanentError, match="no key slot"):
            slots.unlock(store, word)
    after = by_epoch(store)
    assert after.keys() == names.keys()
    assert all(len(after[epoch]) == 1 and after[epoch] != names[epoch] for epoch in names)
    with pytest.raises(EpochLockedError):
        RepositoryKeyring(store, before).pack_cipher(written[0][0], written[0][1])


def test_a_host_that_runs_on_during_the_rotation_loses_nothing() -> None:
    store = MemoryStore()
    passphrase_mode(store)
    busy = slots.unlock(store, WORD)
    rotate_passphrase(store, WORD, NEW, CHEAP)
    late = [seal_pack(busy)]
    assert reads(slots.unlock(store, NEW), late)
    rotate_passphrase(store, NEW, b"third", CHEAP)
    assert reads(slots.unlock(store, b"third"), late)
    assert all(len(holders) == 1 for holders in by_epoch(store).values())


def test_a_passphrase_rotation_may_die_anywhere() -> None:
    store = MemoryStore()
    passphrase_mode(store)
    written = runs(store)
    for steps, crashing in enumerate(crashes(store)):
        try:
            rotate_passphrase(crashing, WORD, NEW, CHEAP)
        except Crash:
            left = MemoryStore(crashing.objects)
            word = WORD if any(_opens(left, WORD)) else NEW
            assert reads(slots.unlock(left, word), written), f"died at step {steps}"
            rotate_passphrase(left, word, b"third", CHEAP)
            assert reads(slots.unlock(left, b"third"), written)
            assert all(len(holders) == 1 for holders in by_epoch(left).values()), "no old wrapping is left"
        else:
            assert steps == 3 + 1 + 1 + 3
            return


def died_before_the_old_slot_went() -> tuple[MemoryStore, Written]:
    """A rotation that died with both passphrases open, and what a host has sealed since under the new one alone."""
    store = MemoryStore()
    passphrase_mode(store)
    written = runs(store)
    dying = CrashingStore(store.objects, 3 + 1)
    with pytest.raises(Crash):
        rotate_passphrase(dying, WORD, NEW, CHEAP)
    left = MemoryStore(dying.objects)
    return left, [*written, seal_pack(slots.unlock(left, NEW))]


def test_the_same_rotation_again_goes_on_with_the_new_slot_it_finds() -> None:
    left, written = died_before_the_old_slot_went()
    done = rotate_passphrase(left, WORD, NEW, CHEAP)
    assert (done.locked, len(done.removed)) == ((), 1)
    assert reads(slots.unlock(left, NEW), written)
    assert not any(_opens(left, WORD))


def test_a_slot_that_alone_opens_an_epoch_stays() -> None:
    """Another new passphrase, from the old one, cannot re-wrap what was sealed under the first new one."""
    left, written = died_before_the_old_slot_went()
    done = rotate_passphrase(left, WORD, b"third", CHEAP)
    assert (done.locked, done.removed) == ((written[-1][0],), ())
    assert reads(slots.unlock(left, NEW), written)


def _opens(store: MemoryStore, word: bytes) -> Iterator[bool]:
    try:
        slots.unlock(store, word)
    except PermanentError:
        return
    yield True


def test_a_damaged_epoch_key_is_reported_and_kept() -> None:
    store = MemoryStore()
    passphrase_mode(store)
    written = runs(store, 2)
    (name,) = (name for name in store.objects if name.startswith(f"epochs/{written[0][0].hex()}"))
    store.objects[name] = b"?"
    done = rotate_passphrase(store, WORD, NEW, CHEAP)
    assert done.locked == (written[0][0],)
    assert store.objects[name] == b"?", "a good copy from another tier may still come in its place"


def test_a_damaged_recipient_stops_the_rotation_before_it_begins() -> None:
    store = MemoryStore()
    secrets = passphrase_mode(store)
    public = PrivateKey.generate().public
    add_recipient(store, secrets, public)
    store.objects[f"keys/{public.id}"] = b"?"
    before = dict(store.objects)
    with pytest.raises(IntegrityError, match=public.id):
        rotate_passphrase(store, WORD, NEW, CHEAP)
    assert store.objects == before


def test_a_rotation_leaves_recipients_what_they_have_and_takes_it_from_removed_ones() -> None:
    store = MemoryStore()
    secrets = passphrase_mode(store)
    stays, goes = PrivateKey.generate(), PrivateKey.generate()
    for key in (stays, goes):
        add_recipient(store, secrets, key.public)
    written = runs(store, 2)
    store.delete(f"keys/{goes.public.id}")
    rotate_passphrase(store, WORD, NEW, CHEAP)
    assert reads(slots.unlock_private(store, stays), written)
    holders = [set(holders) for holders in by_epoch(store).values()]
    assert all(len(ids) == 2 and stays.public.id in ids and goes.public.id not in ids for ids in holders)


def test_an_old_recipient_stays_while_the_new_one_lacks_an_epoch() -> None:
    store = MemoryStore()
    old, new = PrivateKey.generate(), PrivateKey.generate()
    recipient_mode(store, old.public)
    written = runs(store, 2)
    (name,) = (name for name in store.objects if name.startswith(f"epochs/{written[0][0].hex()}"))
    good, store.objects[name] = store.objects[name], b"?"
    done = rotate_recipient(store, old, new.public)
    assert (done.rewrapped, done.locked, done.removed) == (1, (written[0][0],), ())
    store.objects[name] = good  # brought from another tier
    assert rotate_recipient(store, old, new.public).removed == (old.public.id,)
    assert reads(slots.unlock_private(store, new), written)


def test_a_hosts_passphrase_changes_without_its_recipients() -> None:
    store = MemoryStore()
    private = PrivateKey.generate()
    recipient_mode(store, private.public)
    written = runs(store, 2)
    names = by_epoch(store)
    rotate_passphrase(store, WORD, NEW, CHEAP)
    assert by_epoch(store) == names
    assert {info.kind for info in slots.list_slots(store)} == {"host", "recipient"}
    assert reads(slots.unlock_private(store, private), written)
    with pytest.raises(EpochLockedError):
        reads(slots.unlock(store, NEW), written)


def test_a_new_recipient_takes_the_place_of_the_old_at_any_crash() -> None:
    store = MemoryStore()
    old, new = PrivateKey.generate(), PrivateKey.generate()
    recipient_mode(store, old.public)
    written = runs(store)
    for steps, crashing in enumerate(crashes(store)):
        try:
            rotate_recipient(crashing, old, new.public)
        except Crash:
            left = MemoryStore(crashing.objects)
            owner = old if f"keys/{old.public.id}" in left.objects else new
            assert reads(slots.unlock_private(left, owner), written), f"died at step {steps}"
            if owner is old or any(old.public.id in holders for holders in by_epoch(left).values()):
                rotate_recipient(left, old, new.public)
            assert reads(slots.unlock_private(left, new), written)
            assert {tuple(holders) for holders in by_epoch(left).values()} == {(new.public.id,)}
        else:
            assert steps == 1 + 3 + 1 + 3
            assert reads(slots.unlock_private(crashing, new), written)
            with pytest.raises(PermanentError, match="no slot"):
                slots.unlock_private(crashing, old)
            assert {tuple(holders) for holders in by_epoch(crashing).values()} == {(new.public.id,)}
            return


def test_a_recipient_that_comes_later_gets_the_earlier_epochs_by_sharing() -> None:
    store = MemoryStore()
    first, second = PrivateKey.generate(), PrivateKey.generate()
    secrets = recipient_mode(store, first.public)
    written = runs(store, 2)
    add_recipient(store, secrets, second.public)
    with pytest.raises(EpochLockedError, match=first.public.id):
        reads(slots.unlock_private(store, second), written)
    host = Epochs(store, MetaSeal(secrets.meta), ())
    assert len(share(store, host, Recipient(second.public)).locked) == 2, "the host alone cannot"
    shared = share(store, slots.unlock_private(store, first).epochs, Recipient(second.public))
    assert (len(shared.given), shared.locked) == (2, ())
    assert reads(slots.unlock_private(store, second), written)
    slots.remove(store, first.public.id)
    assert {tuple(holders) for holders in by_epoch(store).values()} == {(second.public.id,)}
    assert Identity(second).id == second.public.id


class Racing(MemoryStore):
    """Somebody changes who holds keys just before an epoch's object is written: each of `changes` once."""

    changes: tuple[Callable[[], object], ...] = ()

    def put(self, key: str, data: bytes) -> None:
        if key.startswith("epochs/") and self.changes:
            change, *later = self.changes
            self.changes = ()
            change()
            self.changes = tuple(later)
        super().put(key, data)

    def done(self) -> bool:
        """Whether all changes were made."""
        return not self.changes


def test_an_epoch_that_is_made_during_a_rotation_is_for_the_new_recipient() -> None:
    store = Racing()
    old, new, newest = (PrivateKey.generate() for _ in range(3))
    recipient_mode(store, old.public)
    host = slots.unlock(store, WORD)
    store.changes = (
        lambda: rotate_recipient(store, old, new.public),
        lambda: rotate_recipient(store, new, newest.public),
    )
    written = [seal_pack(host)]
    assert store.done()
    assert reads(slots.unlock_private(store, newest), written)
    assert by_epoch(store) == {written[0][0]: [newest.public.id]}, "nothing is left of the others"


def test_an_epoch_that_is_made_as_a_recipient_is_added_is_for_all() -> None:
    store = Racing()
    first, second = PrivateKey.generate(), PrivateKey.generate()
    secrets = recipient_mode(store, first.public)
    host = slots.unlock(store, WORD)
    store.changes = (lambda: add_recipient(store, secrets, second.public),)
    written = [seal_pack(host)]
    assert reads(slots.unlock_private(store, first), written)
    assert reads(slots.unlock_private(store, second), written)


def test_no_epoch_is_made_while_recipients_change_all_the_time() -> None:
    store = Racing()
    secrets = recipient_mode(store, PrivateKey.generate().public)
    host = slots.unlock(store, WORD)
    store.changes = (lambda: add_recipient(store, secrets, PrivateKey.generate().public),) * 99
    with pytest.raises(TransientError, match="change all the time"):
        seal_pack(host)
    assert not by_epoch(store)


def test_a_rotation_that_is_repeated_names_the_epochs_that_only_the_old_key_opens() -> None:
    """Such as that of a host which died as it made one."""
    store = MemoryStore()
    old, new = PrivateKey.generate(), PrivateKey.generate()
    secrets = recipient_mode(store, old.public)
    rotate_recipient(store, old, new.public)
    Epochs(store, MetaSeal(secrets.meta), ()).give(b"e" * 16, b"k" * 32, Recipient(old.public))
    assert rotate_recipient(store, old, new.public).locked == (b"e" * 16,)
