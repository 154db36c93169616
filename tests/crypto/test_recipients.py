"""Recipient mode: what a backup host can do, what a thief of it cannot, and what a private key alone can."""

from __future__ import annotations

import itertools

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.crypto.store import CHEAP, WORD, MemoryStore, flips, passphrase_mode, recipient_mode, seal_pack
from vmcellar.crypto import documents, recipients, slots
from vmcellar.crypto.base import EpochLockedError
from vmcellar.crypto.derive import derive
from vmcellar.crypto.holders import Master
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.pack_key import PackKey
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.crypto.recipients import add_recipient
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError, PermanentError


@pytest.fixture(scope="module")
def private() -> PrivateKey:
    return PrivateKey.generate()


@pytest.fixture
def store(private: PrivateKey) -> MemoryStore:
    made = MemoryStore()
    recipient_mode(made, private.public)
    return made


def test_the_host_reads_back_what_it_wrote_itself(store: MemoryStore) -> None:
    host = slots.unlock(store, WORD)
    epoch, pack, sealed = seal_pack(host)
    assert host.pack_cipher(epoch, pack).open(0, sealed) == b"disk bytes"


def test_the_host_keeps_names_and_metadata_across_openings(store: MemoryStore) -> None:
    """What it needs to deduplicate, and to see its maps, index and points."""
    first, second = slots.unlock(store, WORD), slots.unlock(store, WORD)
    assert first.chunk_id(b"chunk") == second.chunk_id(b"chunk")
    assert second.open_meta(b"point", b"p", first.seal_meta(b"point", b"p", b"record")) == b"record"
    second.check(b"point", first.sign(b"point"))


def test_a_thief_of_the_host_reads_no_earlier_data(store: MemoryStore) -> None:
    """He has the storage, the host's passphrase, all its secrets, and a process that backs up at this moment."""
    epoch, pack, sealed = seal_pack(slots.unlock(store, WORD))  # yesterday's run
    thief = slots.unlock(store, WORD)
    seal_pack(thief)
    with pytest.raises(EpochLockedError, match=epoch.hex()):
        thief.pack_cipher(epoch, pack)
    secrets = slots.unlock_secrets(store, WORD)
    assert secrets.data == ()
    known = [secrets.ids, secrets.meta, secrets.signing, thief.epochs.key(thief.epoch_id), WORD.ljust(32), bytes(32)]
    contexts = (b"pack", b"epoch", b"wrap", b"signing", b"data")
    keys = [*known, *(derive(key, context, pack) for key, context in itertools.product(known, contexts))]
    for key in keys:
        with pytest.raises(IntegrityError):
            PackKey(key, pack).open(0, sealed)
        with pytest.raises(InvalidTag):
            AESGCM(key).decrypt(bytes(12), sealed, b"vmcellar data pack 1" + pack)
    (name,) = (name for name in store.objects if name.startswith(f"epochs/{epoch.hex()}"))
    wrapped = MetaSeal(secrets.meta).open(b"epoch", name.encode(), store.get(name)[16:])  # this far he comes
    for key in keys:
        with pytest.raises(IntegrityError):
            Master(key).unwrap(name, wrapped)
    assert PrivateKey.generate().open(wrapped, b"vmcellar epoch 1 " + name.encode()) is None


def test_the_private_key_alone_restores_everything(store: MemoryStore, private: PrivateKey) -> None:
    runs = [slots.unlock(store, WORD) for _ in range(3)]
    written = [seal_pack(host, b"run %d" % number) for number, host in enumerate(runs)]
    point = runs[0].seal_meta(b"point", b"p", b"record")
    for name in [name for name in store.objects if name.startswith("keys/") and private.public.id not in name]:
        store.delete(name)  # the backup host and its passphrase are lost
    restorer = slots.unlock_private(store, private)
    assert restorer.open_meta(b"point", b"p", point) == b"record"
    for number, (epoch, pack, sealed) in enumerate(written):
        assert restorer.pack_cipher(epoch, pack).open(0, sealed) == b"run %d" % number


def test_two_recipients_read_the_same_data(store: MemoryStore, private: PrivateKey) -> None:
    second = PrivateKey.generate()
    add_recipient(store, slots.unlock_secrets(store, WORD), second.public, "safe")
    epoch, pack, sealed = seal_pack(slots.unlock(store, WORD))
    for key in (private, second):
        assert slots.unlock_private(store, key).pack_cipher(epoch, pack).open(0, sealed) == b"disk bytes"


def test_a_private_key_without_a_slot(store: MemoryStore) -> None:
    stranger = PrivateKey.generate()
    with pytest.raises(PermanentError, match=f"no slot for recipient {stranger.public.id}"):
        slots.unlock_private(store, stranger)


def test_a_thief_of_the_storage_cannot_become_a_recipient(store: MemoryStore) -> None:
    """He may write objects, but a slot without the metadata key is refused before anything is sealed to it."""
    thief = PrivateKey.generate()
    add_recipient(store, Secrets.random(data=False), thief.public)
    host = slots.unlock(store, WORD)
    with pytest.raises(IntegrityError, match=f"keys/{thief.public.id} was not made with this repository's keys"):
        host.epoch_id  # noqa: B018
    assert not any(name.startswith("epochs/") for name in store.objects)


def test_a_forged_field_of_a_recipient_is_found(store: MemoryStore, private: PrivateKey) -> None:
    name = f"keys/{private.public.id}"
    kind, fields = documents.decode(name, store.get(name))
    thief = documents.base64(PrivateKey.generate().public.raw)
    for key, value in {"public": thief, "label": "mallory", "secrets": "AAAA", "created": "", "proof": "AAAA"}.items():
        store.objects[name] = documents.encode(kind, {**fields, key: value})
        with pytest.raises(IntegrityError, match=name):
            slots.unlock(store, WORD).epoch_id  # noqa: B018
        with pytest.raises(IntegrityError, match=name):
            slots.unlock_private(store, private)


def test_a_recipients_slot_holds_no_data_master(private: PrivateKey) -> None:
    store = MemoryStore()
    secrets = passphrase_mode(store)
    add_recipient(store, secrets, private.public)
    assert recipients.unlock_secrets(store, private) == secrets.metadata_only()


def test_every_flipped_bit_of_a_recipient_slot_is_found(store: MemoryStore, private: PrivateKey) -> None:
    name = f"keys/{private.public.id}"
    meta = MetaSeal(slots.unlock_secrets(store, WORD).meta)
    for changed in flips(store.get(name)):
        damaged = MemoryStore({name: changed})
        with pytest.raises(IntegrityError, match=name):
            recipients.recipients(damaged, meta)
        with pytest.raises(IntegrityError, match=name):
            recipients.unlock_secrets(damaged, private)


def test_every_flipped_bit_of_an_epoch_key_is_found_and_named() -> None:
    store = MemoryStore()
    passphrase_mode(store)
    epoch, pack, _ = seal_pack(slots.unlock(store, WORD))
    name = store.only("epochs/")
    keyring = slots.unlock(store, WORD)
    data = store.get(name)
    for changed in [*flips(data), data[:-1], data[:20], b""]:
        store.objects[name] = changed
        with pytest.raises(IntegrityError, match=name):
            keyring.pack_cipher(epoch, pack)


def test_a_flipped_bit_of_a_recipients_epoch_key_is_found(store: MemoryStore, private: PrivateKey) -> None:
    epoch, pack, _ = seal_pack(slots.unlock(store, WORD))
    name = store.only("epochs/")
    restorer = slots.unlock_private(store, private)
    for changed in itertools.islice(flips(store.get(name)), 0, None, 7):
        store.objects[name] = changed
        with pytest.raises(IntegrityError, match=name):
            restorer.pack_cipher(epoch, pack)


def test_an_epoch_key_of_another_epoch_is_refused(store: MemoryStore, private: PrivateKey) -> None:
    for _ in range(2):
        seal_pack(slots.unlock(store, WORD))
    one, two = (name for name in sorted(store.objects) if name.startswith("epochs/"))
    store.objects[one] = store.objects[two]
    with pytest.raises(IntegrityError, match=one):
        slots.unlock_private(store, private).epochs.key(bytes.fromhex(one[7:39]))


def test_a_missing_epoch_key_is_named(store: MemoryStore, private: PrivateKey) -> None:
    with pytest.raises(IntegrityError, match=f"the key of epoch {'00' * 16} is missing"):
        slots.unlock_private(store, private).epochs.key(bytes(16))


def test_without_a_recipient_nothing_is_stored() -> None:
    store = MemoryStore()
    recipient_mode(store)
    with pytest.raises(PermanentError, match="no recipient"):
        slots.unlock(store, WORD).epoch_id  # noqa: B018


def test_create_goes_on_after_a_crash(private: PrivateKey) -> None:
    store = MemoryStore()
    recipient_mode(store)  # died before it wrote the recipient
    slots.create(store, WORD, [private.public])
    epoch, pack, sealed = seal_pack(slots.unlock(store, WORD))
    assert slots.unlock_private(store, private).pack_cipher(epoch, pack).open(0, sealed) == b"disk bytes"


def test_the_key_files(private: PrivateKey) -> None:
    secret_file = private.to_file(b"at home", CHEAP)
    public_file = private.public.to_file()
    assert PrivateKey.from_file("me.key", secret_file, b"at home") == private
    assert PublicKey.from_file("me.pub", public_file) == private.public
    with pytest.raises(PermanentError, match=r"me\.key does not open with this passphrase"):
        PrivateKey.from_file("me.key", secret_file, b"elsewhere")
    with pytest.raises(PermanentError, match="holds a recipient public key, not a recipient private key"):
        PrivateKey.from_file("me.pub", public_file, b"at home")
    for changed in [*flips(secret_file), secret_file[:-1]]:
        with pytest.raises(IntegrityError, match=r"me\.key"):
            PrivateKey.from_file("me.key", changed, b"at home")
    for changed in [*flips(public_file), public_file[:-1]]:
        with pytest.raises(IntegrityError, match=r"me\.pub"):
            PublicKey.from_file("me.pub", changed)


def test_a_public_key_that_is_none() -> None:
    for raw in (b"", bytes([255]) * 1216):
        with pytest.raises(IntegrityError, match=r"me\.pub: the public key is not valid"):
            PublicKey.from_bytes("me.pub", raw)
