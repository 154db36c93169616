"""Key slots of passphrase mode: wrong passphrases, damage, forgery, the rules of removal, and nothing shown."""

from __future__ import annotations

import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.crypto.store import CHEAP, WORD, MemoryStore, flips, passphrase_mode, recipient_mode, seal_pack
from vmcellar.crypto import documents, recipients, slots
from vmcellar.crypto.epochs import Epochs, share
from vmcellar.crypto.holders import Recipient
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.passphrase import Argon2Cost
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError, PermanentError


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_what_one_opening_seals_another_opens(store: MemoryStore) -> None:
    passphrase_mode(store)
    epoch, pack, sealed = seal_pack(slots.unlock(store, WORD))
    again = slots.unlock(store, WORD)
    assert again.pack_cipher(epoch, pack).open(0, sealed) == b"disk bytes"
    assert again.epoch_id != epoch


def test_the_default_cost_is_rfc_9106s_second_choice(store: MemoryStore) -> None:
    secrets = slots.create(store, WORD)
    _, fields = documents.decode("slot", store.get(store.only("keys/")))
    assert (fields["memory_kib"], fields["passes"], fields["lanes"]) == (65536, 3, 4)
    assert slots.unlock_secrets(store, WORD) == secrets
    assert slots.create(store, WORD) == secrets, "a second call goes on with what it finds"
    assert len(store.objects) == 1


def test_threads_open_it_side_by_side(store: MemoryStore) -> None:
    """Without their turns they fail for want of memory, or wait for each other for ever."""
    made = slots.create(store, WORD)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: slots.unlock_secrets(store, WORD), range(8))) == [made] * 8


@pytest.mark.parametrize("wrong", [b"wrong", b"", WORD + b"\n", WORD[:-1]])
def test_a_wrong_passphrase_says_one_thing(store: MemoryStore, wrong: bytes) -> None:
    passphrase_mode(store)
    with pytest.raises(PermanentError) as caught:
        slots.unlock(store, wrong)
    assert caught.value.message == "no key slot of the repository opens with this passphrase"


def test_an_empty_passphrase_makes_no_slot(store: MemoryStore) -> None:
    with pytest.raises(PermanentError, match="empty"):
        slots.add_passphrase(store, Secrets.random(), b"")


def test_every_flipped_bit_of_a_slot_is_found_and_named(store: MemoryStore) -> None:
    passphrase_mode(store)
    name = store.only("keys/")
    data = store.get(name)
    for changed in [*flips(data), data[:-1], data + b" ", b"", b"{}", b"[1]", b"null", b"[" * 70000]:
        with pytest.raises(IntegrityError, match=name):
            slots.unlock(MemoryStore({name: changed}), WORD)


def test_a_damaged_slot_hides_no_good_one(store: MemoryStore) -> None:
    secrets = passphrase_mode(store)
    damaged = store.only("keys/")
    store.objects[damaged] = b"?"
    slots.add_passphrase(store, secrets, b"other", CHEAP)
    assert slots.unlock_secrets(store, b"other") == secrets
    with pytest.raises(PermanentError, match=rf"1 slots cannot be used: {damaged}"):
        slots.unlock_secrets(store, WORD)
    assert {info.kind for info in slots.list_slots(store)} == {"damaged", "passphrase"}


@pytest.mark.parametrize("key", ["label", "created", "salt", "sealed"])
def test_a_forged_field_does_not_open(store: MemoryStore, key: str) -> None:
    """A forger can recompute the checksum; what the slot shows is bound to what it seals."""
    passphrase_mode(store)
    name = store.only("keys/")
    kind, fields = documents.decode(name, store.get(name))
    forged = documents.base64(bytes(16)) if key == "salt" else documents.base64(bytes(172))
    store.objects[name] = documents.encode(kind, {**fields, key: forged})
    with pytest.raises(PermanentError, match="no key slot"):
        slots.unlock(store, WORD)


def test_a_slot_opens_only_under_its_own_name_and_kind(store: MemoryStore) -> None:
    passphrase_mode(store)
    name = store.only("keys/")
    data = store.get(name)
    _, fields = documents.decode(name, data)
    for moved in ({"keys/" + "0" * 32: data}, {name: documents.encode("host", fields)}):
        with pytest.raises(PermanentError, match="no key slot"):
            slots.unlock(MemoryStore(moved), WORD)


@pytest.mark.parametrize(
    "change",
    [
        {"memory_kib": 1 << 40},
        {"memory_kib": 7},
        {"passes": 0},
        {"lanes": 1 << 30},
        {"lanes": "4"},
        {"salt": "AAAA"},
        {"salt": 7},
        {"sealed": "AAAA"},
        {"sealed": "*"},
    ],
)
def test_costs_and_lengths_are_bounded_before_they_are_used(store: MemoryStore, change: dict[str, str | int]) -> None:
    passphrase_mode(store)
    name = store.only("keys/")
    kind, fields = documents.decode(name, store.get(name))
    store.objects[name] = documents.encode(kind, {**fields, **change})
    with pytest.raises(PermanentError, match=f"1 slots cannot be used: .*{name}"):
        slots.unlock(store, WORD)


def test_a_newer_slot_says_so(store: MemoryStore) -> None:
    name = "keys/" + "1" * 32
    store.objects[name] = documents.encode("passphrase", {"format": 2})
    with pytest.raises(PermanentError, match="another format version"):
        slots.unlock(store, WORD)
    assert [info.kind for info in slots.list_slots(store)] == ["newer"]
    secrets = passphrase_mode(store)
    assert slots.unlock_secrets(store, WORD) == secrets, "a slot of this version beside it still opens"


def test_slots_are_listed_and_removed_but_never_the_last_one(store: MemoryStore) -> None:
    secrets = passphrase_mode(store)
    first = store.only("keys/").removeprefix("keys/")
    second = slots.add_passphrase(store, secrets, b"other", CHEAP, label="safe")
    shown = {info.id: (info.kind, info.label) for info in slots.list_slots(store)}
    assert shown == {first: ("passphrase", ""), second: ("passphrase", "safe")}
    slots.remove(store, first)
    with pytest.raises(PermanentError, match="no key slot"):
        slots.unlock(store, WORD)
    with pytest.raises(PermanentError, match="last key"):
        slots.remove(store, second)
    with pytest.raises(PermanentError, match="no key slot nothing"):
        slots.remove(store, "nothing")
    assert slots.unlock_secrets(store, b"other") == secrets


def test_a_host_slot_is_no_reason_to_remove_the_last_recipient(store: MemoryStore) -> None:
    public = PrivateKey.generate().public
    recipient_mode(store, public)
    with pytest.raises(PermanentError, match="last key"):
        slots.remove(store, public.id)


def test_a_recipient_that_alone_opens_some_backups_is_removed_by_force_only(store: MemoryStore) -> None:
    """A host in recipient mode cannot give the epochs of earlier processes to a recipient that comes later."""
    alice, bob = PrivateKey.generate(), PrivateKey.generate()
    secrets = recipient_mode(store, alice.public)
    ring = slots.unlock(store, WORD)
    epoch = ring.epoch_id
    sealed = ring.pack_cipher(epoch, b"p" * 16).seal(0, b"last year's disk")
    recipients.add_recipient(store, secrets, bob.public)
    with pytest.raises(PermanentError, match=f"1 epoch keys are sealed to {alice.public.id} alone"):
        slots.remove(store, alice.public.id)
    opened = slots.unlock_private(store, alice).pack_cipher(epoch, b"p" * 16).open(0, sealed)
    assert bytes(opened) == b"last year's disk"
    slots.remove(store, bob.public.id)
    recipients.add_recipient(store, secrets, bob.public)
    epochs = Epochs(store, MetaSeal(secrets.meta), (), [alice])
    assert not share(store, epochs, Recipient(bob.public)).locked
    slots.remove(store, alice.public.id)
    opened = slots.unlock_private(store, bob).pack_cipher(epoch, b"p" * 16).open(0, sealed)
    assert bytes(opened) == b"last year's disk"


def test_the_last_passphrase_stays_while_recipients_lack_its_epochs(store: MemoryStore) -> None:
    secrets = passphrase_mode(store)
    _ = slots.unlock(store, WORD).epoch_id
    (first,) = (info.id for info in slots.list_slots(store))
    recipients.add_recipient(store, secrets, PrivateKey.generate().public)
    with pytest.raises(PermanentError, match="1 epoch keys are sealed to"):
        slots.remove(store, first)
    slots.remove(store, first, force=True)


def test_nothing_secret_is_shown(store: MemoryStore) -> None:
    secrets, wrong = passphrase_mode(store), b"a wrong" + b" word"
    private = PrivateKey.generate()
    keyring = slots.unlock(store, WORD)
    epoch, pack, sealed = seal_pack(keyring)
    cipher = keyring.pack_cipher(epoch, pack)
    shown = [repr(x) for x in (secrets, private, keyring, keyring.epochs, cipher, Argon2Cost())]
    for attempt in (lambda: slots.unlock(store, wrong), lambda: cipher.open(1, sealed)):
        with pytest.raises((PermanentError, IntegrityError)) as caught:
            attempt()
        shown.append("".join(traceback.format_exception(caught.value)))
    for secret in (secrets.ids, secrets.meta, secrets.signing, *secrets.data, private.raw, WORD, wrong):
        for form in (repr(secret)[2:-1], secret.hex()):
            assert not any(form in text for text in shown)
