"""Pack objects, metadata and signatures: round trips, every bit, every swap, no nonce twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.crypto.store import CHEAP, MemoryStore, flips
from vmcellar.crypto import slots
from vmcellar.crypto.base import Keyring, PackCipher, SmallObjects
from vmcellar.crypto.keyring import RepositoryKeyring
from vmcellar.crypto.layout import SEAL_OVERHEAD
from vmcellar.crypto.pack_key import PackKey
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError

SECRETS = Secrets(b"i" * 32, b"m" * 32, b"s" * 32, (b"d" * 32,))


def ring(secrets: Secrets = SECRETS) -> RepositoryKeyring:
    return RepositoryKeyring(MemoryStore(), secrets)


def test_the_classes_keep_the_contract() -> None:
    store: SmallObjects = MemoryStore()
    slots.add_passphrase(store, SECRETS, b"word", CHEAP)
    keyring: Keyring = slots.unlock(store, b"word")
    cipher: PackCipher = keyring.pack_cipher(keyring.epoch_id, b"p" * 16)
    assert keyring.pack_cipher(keyring.epoch_id, b"p" * 16).open(0, cipher.seal(0, b"x")) == b"x"


@given(plain=st.binary(max_size=300), ordinal=st.integers(0, (1 << 96) - 1))
def test_pack_objects_round_trip(plain: bytes, ordinal: int) -> None:
    sealed = PackKey(b"e" * 32, b"p" * 16).seal(ordinal, memoryview(plain))
    assert len(sealed) == len(plain) + SEAL_OVERHEAD
    assert PackKey(b"e" * 32, b"p" * 16).open(ordinal, memoryview(sealed)) == plain


@given(plain=st.binary(max_size=300))
def test_into_given_memory_is_the_same(plain: bytes) -> None:
    sealed = bytearray(len(plain) + SEAL_OVERHEAD)
    PackKey(b"e" * 32, b"p" * 16).seal_into(3, plain, memoryview(sealed))
    assert bytes(sealed) == PackKey(b"e" * 32, b"p" * 16).seal(3, plain)
    opened = bytearray(len(plain))
    PackKey(b"e" * 32, b"p" * 16).open_into(3, sealed, memoryview(opened))
    assert opened == plain


def test_no_ordinal_is_sealed_twice() -> None:
    cipher = PackKey(b"e" * 32, b"p" * 16)
    cipher.seal(7, b"one")
    with pytest.raises(ValueError, match="ordinal 7 of pack 7070"):
        cipher.seal(7, b"two")
    with pytest.raises(ValueError, match="ordinal 7"):
        cipher.seal_into(7, b"two", memoryview(bytearray(19)))
    cipher.seal(8, b"two")


def test_every_flipped_bit_of_a_pack_object_is_found() -> None:
    cipher = PackKey(b"e" * 32, b"p" * 16)
    sealed = cipher.seal(0, b"disk bytes")
    for changed in [*flips(sealed), sealed[:-1], sealed + b"\0", sealed[:3], b""]:
        with pytest.raises(IntegrityError, match=r"pack 7070.*object 0 "):
            cipher.open(0, changed)
        with pytest.raises(IntegrityError, match=r"pack 7070.*object 0 "):
            cipher.open_into(0, changed, memoryview(bytearray(10)))


def test_a_pack_object_opens_only_in_its_place() -> None:
    sealed = PackKey(b"e" * 32, b"p" * 16).seal(0, b"disk bytes")
    for cipher, ordinal in [
        (PackKey(b"e" * 32, b"p" * 16), 1),
        (PackKey(b"e" * 32, b"q" * 16), 0),
        (PackKey(b"f" * 32, b"p" * 16), 0),
    ]:
        with pytest.raises(IntegrityError):
            cipher.open(ordinal, sealed)


@given(kind=st.binary(max_size=12), name=st.binary(max_size=40), plain=st.binary(max_size=200))
def test_metadata_round_trips(kind: bytes, name: bytes, plain: bytes) -> None:
    assert ring().open_meta(kind, name, ring().seal_meta(kind, name, memoryview(plain))) == plain


def test_every_flipped_bit_of_metadata_is_found() -> None:
    sealed = ring().seal_meta(b"point", b"20260101T000000Z-00000000", b"record")
    for changed in [*flips(sealed), sealed[:-1], sealed + b"\0", sealed[:20], b""]:
        with pytest.raises(IntegrityError, match="point 20260101T000000Z-00000000"):
            ring().open_meta(b"point", b"20260101T000000Z-00000000", changed)


def test_metadata_opens_only_under_its_kind_name_and_repository() -> None:
    sealed = ring().seal_meta(b"toc", b"\x80\x01", b"rows")
    with pytest.raises(IntegrityError, match="index 8001"):
        ring().open_meta(b"index", b"\x80\x01", sealed)
    with pytest.raises(IntegrityError, match="toc 8002"):
        ring().open_meta(b"toc", b"\x80\x02", sealed)
    with pytest.raises(IntegrityError):
        ring(Secrets.random()).open_meta(b"toc", b"\x80\x01", sealed)


def test_signatures() -> None:
    signature = ring().sign(b"a point")
    ring().check(memoryview(b"a point"), signature)
    for changed in [*flips(signature), signature[:-1], b""]:
        with pytest.raises(IntegrityError, match="signature"):
            ring().check(b"a point", changed)
    with pytest.raises(IntegrityError):
        ring().check(b"another point", signature)
    with pytest.raises(IntegrityError):
        ring(Secrets.random()).check(b"a point", signature)


def test_chunks_and_nodes_and_repositories_share_no_name() -> None:
    names = {name(b"same") for r in (ring(), ring(Secrets.random())) for name in (r.chunk_id, r.node_id)}
    assert len(names) == 4
