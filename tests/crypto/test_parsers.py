"""Whatever bytes lie where a key object should be: a value or an error of ours, never another exception."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.crypto.store import CHEAP, WORD, MemoryStore
from vmcellar.crypto import documents, paper, passphrase, slots
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.errors import IntegrityError, PermanentError, UsageError

values = st.one_of(st.integers(-(1 << 70), 1 << 70), st.text(max_size=20), st.just("AAAA"), st.sampled_from([1, 2, 8]))
names = st.sampled_from(
    ["salt", "memory_kib", "passes", "lanes", "sealed", "label", "created", "public", "format", "id"]
)
fields = st.dictionaries(names, values)
kinds = st.sampled_from(["passphrase", "host", "recipient", "recipient public key", "recipient private key", ""])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)
documents_of_any_shape = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda value: json.dumps(value).encode(), anything | st.dictionaries(names, anything)),
    st.builds(documents.encode, kinds, fields),
)


@given(data=documents_of_any_shape)
def test_slots_of_any_bytes(data: bytes) -> None:
    store = MemoryStore({"keys/" + "0" * 32: data})
    try:
        slots.unlock(store, WORD)
    except (PermanentError, IntegrityError) as error:
        assert error.message
    else:
        raise AssertionError("nothing of this opens")
    assert len(slots.list_slots(store)) == 1


@given(data=documents_of_any_shape)
def test_key_files_of_any_bytes(data: bytes) -> None:
    for read in (lambda: PublicKey.from_file("f", data), lambda: PrivateKey.from_file("f", data, WORD)):
        try:
            read()
        except (PermanentError, IntegrityError) as error:
            assert error.message.startswith("f")
        else:
            raise AssertionError("nothing of this is a key")


@given(secret=st.binary(max_size=80), word=st.binary(min_size=1, max_size=20), bound=st.binary(max_size=20))
def test_what_a_passphrase_protects_comes_back_to_it_alone(secret: bytes, word: bytes, bound: bytes) -> None:
    protected = passphrase.protect(secret, word, bound, CHEAP)
    assert passphrase.reveal("f", protected, word, bound) == secret
    assert passphrase.reveal("f", protected, word + b"x", bound) is None
    assert passphrase.reveal("f", protected, word, bound + b"x") is None


@given(kind=kinds, body=st.dictionaries(names.filter(lambda name: name != "format"), values))
def test_documents_round_trip(kind: str, body: dict[str, str | int]) -> None:
    assert documents.decode("f", documents.encode(kind, body)) == (kind, body)


@given(text=st.text(max_size=200) | st.from_regex(r"( *\d{1,3}[.:]? +[A-Z2-7 ]{1,50}\n){1,4}", fullmatch=True))
def test_paper_of_any_text(text: str) -> None:
    try:
        paper.parse(text)
    except (UsageError, IntegrityError) as error:
        assert "paper key" in error.message
    else:
        raise AssertionError("nothing of this is a key")
